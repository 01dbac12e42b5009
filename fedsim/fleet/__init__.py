"""Fleets: what devices clients have, and how long a round takes on them by a virtual clock."""
