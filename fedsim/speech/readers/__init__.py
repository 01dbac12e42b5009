"""Readers of recordings as they lie on disk: one module for each layout, and telling which it is.

The entries are in `fedsim.scenario.readers`.
"""

from fedsim.speech.readers.detect import detect
from fedsim.speech.readers.recorded import read_files, read_recordings

__all__ = ["detect", "read_files", "read_recordings"]
