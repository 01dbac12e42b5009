"""Releases: what may leave a device of its layer profile, and what that costs in privacy.

Plain numpy arrays: no model, no Flower, no scenario. Libraries for noise, accounting and ciphers
are imported where they are used, so that scenarios are checked without them.
"""
