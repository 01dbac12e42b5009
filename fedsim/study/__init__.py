"""What a scenario means together with its model, its clients and their devices."""
