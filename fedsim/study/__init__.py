"""A scenario together with its model, its clients and their devices."""
