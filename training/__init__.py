"""How the bundled models were made: one command each, resumable. Not part of the wheel."""
