"""How runs scale; see `__main__.py`."""
