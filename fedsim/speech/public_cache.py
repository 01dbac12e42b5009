"""Arrays that follow from a model and public clips, kept in the cache folder.

A kept file is believed as far as it is whole and could have been made: its hash, and the names,
types and shapes of its arrays, which are compared before any is read, and every number finite. Any
other file counts as none: what it should hold is made again.

The files are safetensors, written array by array. Second moments are read layer by layer, each time
they are asked for: those of a large model take more memory than its weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.base.files import atomic_write
from fedsim.base.paths import cache_dir
from fedsim.errors import FedsimError
from fedsim.quant.moments import LayerMoments, SecondMoments

Shapes = Mapping[str, tuple[int, ...]]
"""Array name -> its shape; all are float32 or float64."""
_DIGEST = "fedsim.digest"
_ROWS = "fedsim.rows"
_MAX_ROWS_BYTES = 1 << 20
"""Of the text that says on how many rows moments rest: 100 bytes for each layer."""
_MAX_HEADER_BYTES = 16 << 20
"""Of the index of arrays: 150 bytes for each."""
_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "U8": np.dtype("u1"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class _Unfit(Exception):
    """A kept file that cannot be what it is named."""


class _KeptFile:
    """A kept file, open until nothing refers to it: it may be replaced or removed meanwhile."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)

    def read(self, into: np.ndarray, at: int) -> None:
        """Fill an array with the bytes from `at` on; raises `_Unfit` if there are too few."""
        self._file.seek(at)
        if self._file.readinto(into.data.cast("B")) != into.nbytes:
            raise _Unfit


@dataclass(frozen=True, eq=False)
class _KeptArray:
    """An array of a file, at `offset` bytes from its beginning."""

    file: _KeptFile
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.dtype.itemsize * math.prod(self.shape)

    def read(self) -> np.ndarray:
        """Return the array; raises `_Unfit` for a file that is too short."""
        found = np.empty(self.shape, self.dtype)
        self.file.read(found, self.offset)
        return found


@dataclass(frozen=True, eq=False)
class _KeptMoments:
    """Second moments in a file; see `fedsim.quant.moments.SecondMoments`."""

    array: _KeptArray
    rows: int

    @property
    def mean(self) -> np.ndarray:
        """Float32 (G, K, K), read anew each time; raises `FedsimError` if the file was cut."""
        try:
            return self.array.read()
        except (OSError, _Unfit):
            raise FedsimError(
                "second moments that were kept in the cache folder were altered or lost while they"
                " were used; run again"
            ) from None

    @property
    def nbytes(self) -> int:
        """Bytes of the mean."""
        return self.array.nbytes


def kept_arrays(
    name: str, legal: Shapes, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the arrays kept under `name`, made and kept the first time.

    Args:
        name: of the file in the cache folder.
        legal: the shape of every array.
        make: returns the arrays, finite floats.
    """
    found = _read(name, legal)
    if found is not None and found.keys() == legal.keys():
        return {key: kept.read() for key, kept in found.items()}
    made = make()
    _keep(name, made)
    return made


def kept_moments(
    name: str, legal: Shapes, make: Callable[[], dict[str, LayerMoments]]
) -> Mapping[str, SecondMoments]:
    """Return the second moments kept under `name`, made and kept the first time.

    They stay in the file, and are read layer by layer; what was made is returned only where it
    cannot be kept. `legal` is from `moment_shapes`; other arguments are as those of `kept_arrays`.
    """
    found = _read_moments(name, legal)
    if found is not None:
        return found
    made = make()
    _keep(name, _pack(made))
    return _read_moments(name, legal) or made


def _read(name: str, legal: Shapes, *, with_rows: bool = False) -> dict[str, _KeptArray] | None:
    """Return the arrays of a kept file, each of a legal name, type and shape; None if it is not
    usable. Their numbers have been compared with the file's hash."""
    path = _place(name)
    if not path.is_file():
        return None
    try:
        found = _index(_KeptFile(path), legal, with_rows=with_rows)
        digest = found.pop(_DIGEST).read()
        return found if digest.tobytes() == _digest_of(found) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, _Unfit):
        return None  # it is damaged


def _index(file: _KeptFile, legal: Shapes, *, with_rows: bool) -> dict[str, _KeptArray]:
    """Return every array of a file, none of which has been read; raises `_Unfit`, or what Python
    raises for a header that is none."""
    length = int(_KeptArray(file, 0, np.dtype("<u8"), ()).read())
    if length > _MAX_HEADER_BYTES:
        raise _Unfit
    header = _KeptArray(file, 8, _DTYPES["U8"], (length,)).read()
    found = {}
    for key, entry in json.loads(header.tobytes()).items():
        kind, shape = entry["dtype"], tuple(entry["shape"])
        if key == _DIGEST:
            fits = (kind, shape) == ("U8", (32,))
        elif key == _ROWS and with_rows:
            fits = kind == "U8" and len(shape) == 1 and 0 < shape[0] <= _MAX_ROWS_BYTES
        else:
            fits = kind in ("F32", "F64") and shape == legal.get(key)
        if not fits:
            raise _Unfit
        start, stop = entry["data_offsets"]
        found[key] = _KeptArray(file, 8 + length + start, _DTYPES[kind], shape)
        if start < 0 or stop - start != found[key].nbytes:
            raise _Unfit
    return found


def _digest_of(kept: Mapping[str, _KeptArray]) -> bytes:
    """Return the hash of all arrays, read one by one; raises `_Unfit` for numbers that are not
    finite."""
    digest = hashlib.sha256()
    for name, one in sorted(kept.items()):
        array = one.read()
        if not np.isfinite(array).all():
            raise _Unfit
        _add(digest, name, array)
    return digest.digest()


def _keep(name: str, made: Mapping[str, np.ndarray]) -> None:
    """Write arrays into a file, one by one, if the cache folder can be written: a cache that cannot
    costs time, not the result."""
    arrays = {key: np.ascontiguousarray(array) for key, array in made.items()}
    digest = hashlib.sha256()
    for key, array in sorted(arrays.items()):
        _add(digest, key, array)
    arrays[_DIGEST] = np.frombuffer(digest.digest(), np.uint8)
    order = sorted(arrays, key=lambda key: (-arrays[key].itemsize, key))  # so all are aligned
    header, at = {}, 0
    for key in order:
        array = arrays[key]
        header[key] = {
            "dtype": _CODES[array.dtype],
            "shape": array.shape,
            "data_offsets": (at, at + array.nbytes),
        }
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        with atomic_write(_place(name)) as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for key in order:
                file.write(arrays[key].data)
    except OSError:
        pass


def _place(name: str) -> Path:
    return cache_dir() / "public" / f"{name}.safetensors"


def _add(digest: Any, name: str, array: np.ndarray) -> None:
    """Add an array to a hash, in which a single altered bit shows."""
    digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
    digest.update(array.data)


def _pack(moments: Mapping[str, LayerMoments]) -> dict[str, np.ndarray]:
    """Return moments as arrays by name; layers that share one array share its name."""
    arrays: dict[str, np.ndarray] = {}
    owners: dict[int, str] = {}
    rows: dict[str, list] = {}
    for name, one in moments.items():
        owner = owners.setdefault(id(one.mean), name)
        arrays[owner] = one.mean
        rows[name] = [owner, one.rows]
    arrays[_ROWS] = np.frombuffer(json.dumps(rows).encode(), np.uint8)
    return arrays


def _read_moments(name: str, legal: Shapes) -> Mapping[str, SecondMoments] | None:
    """Return the moments that `_pack` packed; None if the file holds anything else."""
    arrays = _read(name, legal, with_rows=True)
    if arrays is None:
        return None
    try:
        rows = json.loads(arrays.pop(_ROWS).read().tobytes())
        owners = {owner: _KeptMoments(arrays[owner], n) for owner, n in rows.values()}
        found = {layer: owners[owner] for layer, (owner, _) in rows.items()}
        alike = all(owners[owner].rows == n for owner, n in rows.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    for layer, one in found.items():
        fits = one.array.dtype == np.float32 and one.array.shape == legal.get(layer)
        if not fits or type(one.rows) is not int or not 0 <= one.rows < 1 << 53:
            return None
    return found if alike and owners.keys() == arrays.keys() else None
