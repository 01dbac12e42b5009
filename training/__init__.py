"""How the bundled models were trained: one resumable command each. Not part of the wheel."""
