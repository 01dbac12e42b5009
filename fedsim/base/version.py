"""The version of fedsim: results of another one may differ."""

__version__ = "0.1.0"
