"""The version of fedsim; another version may give other results."""

__version__ = "0.2.0"
