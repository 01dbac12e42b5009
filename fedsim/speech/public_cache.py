"""Arrays that follow from a model and public clips, kept in the cache folder.

A kept file is believed as far as it is whole and could have been made: its hash, and the names,
types and shapes of its arrays, which are compared before any is read, and every number finite. Any
other file counts as none: what it should hold is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import nn

from fedsim.base.files import atomic_write
from fedsim.base.paths import cache_dir
from fedsim.quant.model import Quantizable
from fedsim.quant.moments import LayerMoments

Shapes = Mapping[str, tuple[int, ...]]
"""Array name -> its shape; all are float32 or float64."""
_DIGEST = "fedsim.digest"
_ROWS = "fedsim.rows"
_MAX_ROWS_BYTES = 1 << 20
"""Of the text that says on how many rows moments rest: 100 bytes for each layer."""


class _Unfit(Exception):
    """A kept file that cannot be what it is named."""


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
        return found
    return _keep(name, make())


def kept_moments(
    name: str, legal: Shapes, make: Callable[[], dict[str, LayerMoments]]
) -> dict[str, LayerMoments]:
    """Return the second moments kept under `name`, made and kept the first time.

    `legal` is from `moment_shapes`; other arguments are as those of `kept_arrays`.
    """
    found = _read(name, legal, with_rows=True)
    if found is not None:
        try:
            return _unpack(found, legal)
        except _Unfit:
            pass
    return _unpack(_keep(name, _pack(make())), legal)


def moment_shapes(model: Quantizable) -> dict[str, tuple[int, ...]]:
    """Return layer name -> shape (G, K, K) of its moments, for each layer that may have some."""
    modules = dict(model.module.named_modules())
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in model.layers:
        if layer.kind != "embedding":
            module = modules[layer.name]
            groups = module.groups if isinstance(module, nn.Conv1d) else 1
            inputs = layer.n_weights // layer.channels
            shapes[layer.name] = (groups, inputs, inputs)
    return shapes


def _read(name: str, legal: Shapes, *, with_rows: bool = False) -> dict[str, np.ndarray] | None:
    """Return the arrays of a kept file, each of a legal name, type and shape; None if it is not
    usable."""
    path = _place(name)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            names = set(file.keys())
            for key in names:
                part = file.get_slice(key)
                kind, shape = part.get_dtype(), tuple(part.get_shape())
                if key == _DIGEST:
                    fits = (kind, shape) == ("U8", (32,))
                elif key == _ROWS and with_rows:
                    fits = kind == "U8" and len(shape) == 1 and shape[0] <= _MAX_ROWS_BYTES
                else:
                    fits = kind in ("F32", "F64") and shape == legal.get(key)
                if not fits:
                    return None
            found = {key: file.get_tensor(key) for key in names}
    except (OSError, SafetensorError):  # it is damaged
        return None
    digest = found.pop(_DIGEST, np.empty(0, np.uint8))
    whole = digest.tobytes() == _digest(found)
    return found if whole and all(np.isfinite(array).all() for array in found.values()) else None


def _keep(name: str, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays = {key: np.ascontiguousarray(array) for key, array in made.items()}
    path = _place(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(save(arrays | {_DIGEST: np.frombuffer(_digest(arrays), np.uint8)}))
    except OSError:
        return arrays  # a cache that cannot be written costs time, not the result
    return arrays


def _place(name: str) -> Path:
    return cache_dir() / "public" / f"{name}.safetensors"


def _digest(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return a hash of all arrays, so that a single altered bit of a kept file is found."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        digest.update(array.data)
    return digest.digest()


def _pack(moments: dict[str, LayerMoments]) -> dict[str, np.ndarray]:
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


def _unpack(arrays: Mapping[str, np.ndarray], legal: Shapes) -> dict[str, LayerMoments]:
    """Return the moments that `_pack` packed; raises `_Unfit` for anything else."""
    try:
        rows = json.loads(arrays[_ROWS].tobytes())
        found = {name: LayerMoments(arrays[owner], n) for name, (owner, n) in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _Unfit from None
    for name, one in found.items():
        fits = one.mean.dtype == np.float32 and one.mean.shape == legal.get(name)
        if not fits or type(one.rows) is not int or not 0 <= one.rows < 1 << 53:
            raise _Unfit
    if {id(one.mean) for one in found.values()} != {
        id(array) for key, array in arrays.items() if key != _ROWS
    }:
        raise _Unfit
    return found
