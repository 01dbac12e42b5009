"""Benchmarks: each prints one ratio against a named reference, in one run."""
