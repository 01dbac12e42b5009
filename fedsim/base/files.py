"""Atomic writing: a file is written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path, *, durable: bool = True, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that replaces it when the block ends without an error.

    Readers see the old file or the new one, even if this process dies; of several writers, the last
    one wins. The folder is created if it is missing.

    Args:
        path: the file to write.
        durable: whether to flush the file to disk before it gets its name, so that it survives a
            power cut. Not needed for what can be made again.
        mode: who may read and write the file.

    Raises:
        OSError: if the folder or the file cannot be written; no temporary file remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}-")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; raises `OSError` as `atomic_write` does."""
    with atomic_write(path) as file:
        file.write(text.encode())
