"""Traced networks, kept in the cache folder: tracing takes many seconds, and is done once on a
machine for one model.

A kept file is believed if its hash fits; any other counts as none, and the network is traced again.
Its name is a hash of everything that the network follows from, the exporter's own code included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedsim.base.files import atomic_write
from fedsim.base.paths import cache_dir
from fedsim.export.onnx_graph import Skeleton
from fedsim.export.onnx_packer import WeightTensor
from fedsim.quant.switch import switch_of

if TYPE_CHECKING:
    from fedsim.speech.models.base import SpeechModel

_ABOUT = "about"
_WAIT_S = 600


def kept_graphs(
    model: SpeechModel,
    leftovers: Mapping[str, torch.Tensor],
    make: Callable[[], dict[str, Skeleton]],
) -> dict[str, Skeleton]:
    """Return the graphs of a model by file name, kept or made.

    Args:
        model: in full precision.
        leftovers: the rest of its state, as it is exported.
        make: traces them.
    """
    place = cache_dir() / "onnx" / f"{_identity(model, leftovers)}.safetensors"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # Worker processes begin together: one traces, and the others wait for it.
        with FileLock(f"{place}.lock", timeout=_WAIT_S):
            found = _read(place)
            if found is None:
                found = make()
                with suppress(OSError), atomic_write(place) as file:
                    file.write(_packed(found))
            return found
    except OSError:  # a cache that cannot be written, or a lock that lasts, costs time
        return make()


def _identity(model: SpeechModel, leftovers: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of all that the traced network follows from, in hexadecimal."""
    adapter: Any = model
    about = {
        "packages": {name: version(name) for name in ("torch", "transformers", "onnx")},
        "code": [file.read_text() for file in sorted(Path(__file__).parent.glob("*.py"))],
        "classes": [type(model).__name__, type(model.module).__name__],
        "config": str(getattr(model.module, "config", None)),
        "generation": str(getattr(model.module, "generation_config", None)),
        "extractor": str(getattr(adapter, "extractor", None)),
        "settings": dict(model.settings),
        "layers": [[layer.name, layer.aliases] for layer in model.layers],
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in {**switch_of(model).full_weights(), **leftovers}.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return digest.hexdigest()[:32]


def _packed(graphs: Mapping[str, Skeleton]) -> bytes:
    """Return graphs as the bytes of a file, behind their hash."""
    arrays = {name: _bytes(bare.traced.SerializeToString()) for name, bare in graphs.items()}
    about = {
        name: {key: [w.layer, w.shape, w.transposed] for key, w in bare.weights.items()}
        for name, bare in graphs.items()
    }
    body = save({**arrays, _ABOUT: _bytes(json.dumps(about).encode())})
    return hashlib.sha256(body).digest() + body


def _read(place: Path) -> dict[str, Skeleton] | None:
    """Return the graphs of a kept file; None if there is none, or it is damaged."""
    import onnx

    try:
        data = place.read_bytes()
        digest, body = data[:32], data[32:]
        if hashlib.sha256(body).digest() != digest:
            return None
        arrays = load(body)
    except (OSError, SafetensorError):
        return None
    return {
        name: Skeleton(
            onnx.load_from_string(arrays[name].tobytes()),
            {key: WeightTensor(i, tuple(shape), turned) for key, (i, shape, turned) in own.items()},
        )
        for name, own in json.loads(arrays[_ABOUT].tobytes()).items()
    }


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)
