"""What a run leaves behind: its folder, its ledger its table of results, and their readers."""
