"""Carrying a scenario out: one run, every combination of a matrix, and what can be said before."""
