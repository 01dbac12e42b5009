"""The model file: one safetensors file per client, exact to the byte, verified by hash.

    8 bytes        length of the header (little endian)
    header         JSON: tensor names, dtypes, shapes, offsets; the manifest under `__metadata__`;
                   padded with spaces to a length that depends on the model alone
    tensors        widest type first: activation ranges (F32), weight scales (F16), leftovers, the
                   bit depth of each layer's input (U8), which rows of the token embedding the file
                   holds, if not all (U8, one bit per row); then the packed codes of each layer, and
                   its packed zero points if it has any (U8)

Because the header's length is fixed, the size of a file is a constant plus the packed bytes of each
layer: a plan's size is known to the byte before anything is packed, and `getsize(file) <= budget`.
The header (`quant/modelheader.py`) holds a SHA-256 over its length, itself (with zeros for the
digest) and the tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedsim.base.files import atomic_write
from fedsim.errors import FedsimError, ModelFileError
from fedsim.quant.activations import InputFormat, Range
from fedsim.quant.allocation import Sizes
from fedsim.quant.layers import Layer
from fedsim.quant.modelheader import (
    Manifest,
    header_length,
    in_order,
    make_header,
    parse,
    raw_bytes,
)
from fedsim.quant.rows import SUFFIX as ROWS
from fedsim.quant.rows import Rows, rows_in, trimmed_layers
from fedsim.quant.weights import PackedWeight, code_bytes, stored_weight

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ModelFile:
    """The contents of a model file.

    `inputs` say how each layer's input is quantized; `rows` which rows of one layer are stored,
    None if all are.
    """

    manifest: Manifest
    weights: tuple[PackedWeight, ...]
    inputs: tuple[InputFormat, ...]
    leftovers: dict[str, torch.Tensor]
    rows: Rows | None = None


def fingerprint(layers: Sequence[Layer]) -> str:
    """Return a hash of the layers' names and shapes: 16 hexadecimal digits."""
    text = json.dumps([[layer.name, layer.shape] for layer in layers])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def store_leftovers(leftovers: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return leftovers as they are stored: floats in half precision, where that stays finite."""
    stored = {}
    for name, tensor in leftovers.items():
        half = tensor.half() if tensor.is_floating_point() else tensor
        fits = not tensor.is_floating_point() or bool(torch.isfinite(half).all())
        stored[name] = (half if fits else tensor.float()).contiguous()
    return stored


def load_leftovers(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return stored leftovers as the model computes with them: floats in float32."""
    return {k: v.float() if v.is_floating_point() else v for k, v in stored.items()}


def model_sizes(
    layers: Sequence[Layer],
    leftovers: Mapping[str, torch.Tensor],
    manifest: Manifest,
    depths: Sequence[int],
    rows: Rows | None = None,
) -> Sizes:
    """Return the exact bytes of every possible model file of a model, as a table for allocators.

    Args:
        layers: of the model.
        leftovers: as stored.
        manifest: with any bit depths; its other fields decide the length of the header.
        depths: legal bit depths, ascending.
        rows: which rows of one layer are stored; None for all.
    """
    layers = trimmed_layers(layers, rows)
    weight_format = manifest.weight_format
    table = np.array(
        [[weight_format.code_bytes(layer.shape, depth) for depth in depths] for layer in layers],
        np.int64,
    )
    scales = sum(weight_format.scale_bytes(layer.shape) for layer in layers)
    inputs = len(layers) * (2 * 4 + 1)
    rest = sum(t.nbytes for t in leftovers.values())
    bitmap = 0 if rows is None else rows.bitmap.nbytes
    header = 8 + header_length(layers, leftovers, manifest, rows)
    return Sizes(tuple(depths), table, header + inputs + scales + rest + bitmap)


def write(path: str | os.PathLike[str], layers: Sequence[Layer], model: ModelFile) -> int:
    """Write a model file atomically and return its bytes.

    Raises `FedsimError` when the folder cannot be written.
    """
    target = Path(path)
    layers = trimmed_layers(layers, model.rows)
    tensors = _tensors(layers, model)
    length = header_length(layers, model.leftovers, model.manifest, model.rows)
    header = make_header(tensors, model.manifest, length)
    try:
        with atomic_write(target) as file:
            file.write(header)
            for array in tensors.values():
                file.write(raw_bytes(array))
            return file.tell()
    except OSError as error:
        raise FedsimError(
            f"the model file {target} cannot be written: {error.strerror}; choose a folder that is "
            f"writable and has {len(header) + sum(a.nbytes for a in tensors.values()):,} bytes free"
        ) from error


def read(path: str | os.PathLike[str], layers: Sequence[Layer]) -> ModelFile:
    """Read and verify a model file that was made from a model with these layers.

    Raises `ModelFileError` when the file is missing, truncated, altered by a single bit, of another
    model or of another format.
    """
    manifest, tensors = _read(Path(path))
    if manifest.fingerprint != fingerprint(layers):
        raise ModelFileError(
            f"the model file {path} holds a model made from {manifest.model!r}, whose layers "
            f"differ from those of the model given; load it with the model it was made from"
        )
    rows = rows_in(tensors, layers)
    layers = trimmed_layers(layers, rows)
    scales, at = tensors["fedsim.scales"], 0
    weights = []
    for layer, bits in zip(layers, manifest.bits, strict=True):
        count = manifest.weight_format.n_scales(layer.shape)
        codes = tensors[f"{layer.name}.codes"]
        weights.append(
            stored_weight(codes, scales[at : at + count], layer.shape, bits, manifest.weight_format)
        )
        at += count
    inputs = [
        InputFormat(int(bits), None if np.isnan(low) else Range(float(low), float(high)))
        for bits, (low, high) in zip(
            tensors["fedsim.input_bits"], tensors["fedsim.ranges"], strict=True
        )
    ]
    names = {f"{layer.name}{kind}" for layer in layers for kind in (".codes", ROWS)}
    rest = {
        name: torch.from_numpy(np.array(array))
        for name, array in tensors.items()
        if name not in names and not name.startswith("fedsim.")
    }
    return ModelFile(manifest, tuple(weights), tuple(inputs), rest, rows)


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Verify a model file and return its manifest; raises as `read` does."""
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[Manifest, dict[str, np.ndarray]]:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ModelFileError(
            f"the model file {path} cannot be read: {error.strerror}; check the path"
        ) from error
    return parse(data, path)


def _tensors(layers: Sequence[Layer], model: ModelFile) -> dict[str, np.ndarray]:
    """Return every tensor of the file, in the order in which they are written."""
    nothing = (np.nan, np.nan)
    ranges = [i.range for i in model.inputs]
    pairs = [nothing if r is None else (r.low, r.high) for r in ranges]
    return in_order(
        np.asarray(pairs, "<f4").reshape(len(layers), 2),
        np.concatenate([w.scales.reshape(-1) for w in model.weights]).astype("<f2"),
        np.asarray([i.bits for i in model.inputs], np.uint8),
        model.leftovers,
        {
            f"{layer.name}.codes": code_bytes(weight)
            for layer, weight in zip(layers, model.weights, strict=True)
        },
        model.rows,
    )
