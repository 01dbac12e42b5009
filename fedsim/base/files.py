"""Files: written whole or not at all, and read only if they end."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedsim.errors import FedsimError


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


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_POINTER = b"version https://git-lfs.github.com/spec/v1"
_POINTER_BYTES = 1024
"""Bytes that such a text has at most."""


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is the text that Git LFS leaves in place of one it has not fetched."""
    try:
        if not 0 < path.stat().st_size < _POINTER_BYTES or not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except (OSError, ValueError):
        return False


def require_regular(path: Path) -> int:
    """Return the size of a file in bytes, after checking that it is one.

    A pipe or a device is never opened: reading it may wait for ever, or never end.

    Raises:
        FileNotFoundError: if there is none.
        FedsimError: for anything else than a regular file, and a name that no file can have.
    """
    try:
        found = path.stat()
    except ValueError:
        raise FedsimError(f"{str(path)!r}: no file has such a name: correct it") from None
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise
        raise FedsimError(f"{path}: {_reason(error)}: check the path") from None
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        raise FedsimError(f"{path}: this is {_KINDS.get(kind, 'not a file')}: name a regular file")
    return found.st_size


def read_text(path: Path, max_bytes: int) -> str:
    """Return the text of a UTF-8 file; a byte order mark at its beginning is dropped.

    Raises `FedsimError` for a file that is missing, no regular one, longer than `max_bytes`, not
    readable or not UTF-8; then with the line.
    """
    try:
        size = require_regular(path)
        if size > max_bytes:
            raise FedsimError(
                f"{path}: the file has {size:,} bytes, more than the {max_bytes:,} that are read:"
                f" name another, or shorten it"
            )
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
        if is_lfs_pointer(path):
            raise FedsimError(
                f"{path}: this is a pointer of Git LFS, not the file itself: run git lfs pull in"
                f" its folder"
            )
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise FedsimError(f"{path}: the file does not exist: check the path") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise FedsimError(f"{path}:{line}: the file is not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise FedsimError(f"{path}: the file cannot be read: {_reason(error)}: check it") from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
