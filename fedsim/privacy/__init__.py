"""Privacy: what a client's release gives away."""
