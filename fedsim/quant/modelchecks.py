"""Whether a model file fits a model: its index of tensors, then every number in them.

Functions raise `Flaw`, as those of `fedsim.quant.modelparse` do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np

from fedsim.quant.activations import (
    MAX_ACTIVATION_BITS,
    MIN_ACTIVATION_BITS,
    InputFormat,
    Range,
)
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.modelheader import (
    CODES,
    DTYPES,
    INPUT_BITS,
    RANGES,
    SCALES,
    Manifest,
    TensorSpec,
    header_length,
    layout,
)
from fedsim.quant.modelparse import Header, require
from fedsim.quant.packing import packed_bytes
from fedsim.quant.rows import SUFFIX as ROWS
from fedsim.quant.rows import Rows, may_be_trimmed, rows_of, trimmed_layers
from fedsim.quant.weights import PackedWeight, stored_weight, usable_scales

MAX_LEFTOVER_BYTES = 1 << 30
"""Of all leftovers together, where the reader does not know those of the model."""
_NONE = 0x7FC00000
"""The bits of NaN, float32, which stands for an end of no range."""
_ANOTHER = "its index of tensors is not the one that belongs to its manifest and the model"


class OtherModel(Exception):
    """A file whose leftovers are not those of the model given; the text names the first."""


def check_layout(
    file: BinaryIO,
    header: Header,
    layers: Sequence[Layer],
    leftovers: Mapping[str, np.ndarray] | None,
) -> Rows | None:
    """Return which rows of one layer a file stores, if its tensors are those of the model.

    Args:
        file: of which the bitmap of rows is read, no more.
        header: of the file.
        layers: of the model.
        leftovers: of the model in full precision; None if they are not known.
    """
    bits = header.manifest.bits
    require(len(bits) == len(layers), f"{len(bits)} bit depths for {len(layers)} layers")
    known = {RANGES, SCALES, INPUT_BITS, *(layer.name + CODES for layer in layers)}
    rows = _rows(file, header, layers)
    if rows is not None:
        known.add(rows.layer + ROWS)
        layers = trimmed_layers(layers, rows)
    rest = {name: spec for name, spec in header.tensors.items() if name not in known}
    _check_rest(rest, leftovers)
    expected = layout(layers, rest, header.manifest, rows)
    require(list(expected.items()) == list(header.tensors.items()), _ANOTHER)
    room = header_length(layers, rest, header.manifest, rows)
    require(header.length == room, f"its header has {header.length:,} bytes, not {room:,}")
    return rows


def weights_of(
    layers: Sequence[Layer], manifest: Manifest, tensors: Mapping[str, np.ndarray]
) -> tuple[PackedWeight, ...]:
    """Return the weight of each layer, as packed, from tensors of the right sizes.

    Scales must be finite and not 0, and the last byte of codes filled with zeros.
    """
    how, scales, at = manifest.weight_format, tensors[SCALES], 0
    weights = []
    for layer, bits in zip(layers, manifest.bits, strict=True):
        own, codes = scales[at : at + how.n_scales(layer.shape)], tensors[layer.name + CODES]
        fits = usable_scales(own)
        require(fits, f"the scales of layer {layer.name!r} are not all finite, or one is 0")
        _check_padding(codes, layer, bits, how)
        weights.append(stored_weight(codes, own, layer.shape, bits, how))
        at += own.size
    return tuple(weights)


def _check_padding(codes: np.ndarray, layer: Layer, bits: int, weight_format: WeightFormat) -> None:
    """Refuse packed codes or zero points, uint8, whose last bytes are not filled with zeros."""
    n = packed_bytes(layer.n_weights, bits)
    for count, part in (
        (layer.n_weights, codes[:n]),
        (weight_format.n_scales(layer.shape), codes[n:]),
    ):
        used = count * bits % 8
        blank = not (part.size and used) or int(part[-1]) >> used == 0
        require(blank, f"the codes of layer {layer.name!r} do not end in zeros")


def inputs_of(
    layers: Sequence[Layer], bits: np.ndarray, ranges: np.ndarray
) -> tuple[InputFormat, ...]:
    """Return how each layer's input is quantized, from uint8 (L,) and float32 (L, 2).

    An input is in floats (0 bits), or has 4 to 16 bits and a range around 0. Without a range it is
    dynamic, which only linear layers are. A table of embeddings has no input to quantize.
    """
    found, none = [], (ranges.view("<u4") == _NONE).all(axis=1)
    for layer, width, (low, high), bare in zip(
        layers, bits.tolist(), ranges.tolist(), none.tolist(), strict=True
    ):
        place = f"the input of layer {layer.name!r}"
        fits = MIN_ACTIVATION_BITS <= width <= MAX_ACTIVATION_BITS and layer.kind != "embedding"
        require(fits or width == 0, f"{place} has {width} bits")
        if width == 0 or bare:
            require(bare, f"{place} has a range and no bits")
            require(width == 0 or layer.kind == "linear", f"{place} has bits and no range")
            found.append(InputFormat(width))
        else:
            fits = bool(np.isfinite([low, high]).all()) and low <= 0 <= high
            require(fits, f"{place} has a range from {low:g} to {high:g}")
            found.append(InputFormat(width, Range(low, high)))
    return tuple(found)


def check_leftovers(
    found: Mapping[str, np.ndarray], known: Mapping[str, np.ndarray] | None
) -> None:
    """Refuse leftovers that are not finite, unless the model's own are not either.

    Anything other than a float (places in a sequence, flags, counts) is the model's own to the bit.
    """
    for name, array in found.items():
        own = None if known is None else known[name]
        if array.dtype == bool:  # any other byte is neither true nor false
            require(bool((array.view(np.uint8) <= 1).all()), f"{name!r} is neither true nor false")
        if array.dtype.kind != "f":
            same = own is None or np.array_equal(array, own)
            require(same, f"{name!r} is not that of the model")
        elif not np.isfinite(array).all():
            wild = array.dtype != np.float16 and (own is None or not np.isfinite(own).all())
            require(wild, f"{name!r} is not finite")


def _rows(file: BinaryIO, header: Header, layers: Sequence[Layer]) -> Rows | None:
    found = [layer for layer in layers if layer.name + ROWS in header.tensors]
    if not found:
        return None
    layer, name = found[0], found[0].name + ROWS
    spec = TensorSpec(DTYPES["U8"], (-(-layer.shape[0] // 8),))
    fits = len(found) == 1 and may_be_trimmed(layer) and header.tensors[name] == spec
    require(fits, "it drops rows of a layer that needs all of them")
    file.seek(header.start_of(name))
    bitmap = np.frombuffer(file.read(spec.nbytes), np.uint8)
    require(bitmap.size == spec.nbytes, "it ends too early")
    rows = rows_of(bitmap, layer)
    fits = rows.count > 0 and np.array_equal(rows.bitmap, bitmap)
    require(fits, f"the bitmap of rows of layer {layer.name!r} is malformed")
    return rows


def _check_rest(found: Mapping[str, TensorSpec], known: Mapping[str, np.ndarray] | None) -> None:
    require(not any(name.startswith("fedsim.") for name in found), _ANOTHER)
    if known is None:
        taken = sum(spec.nbytes for spec in found.values())
        require(taken <= MAX_LEFTOVER_BYTES, f"its leftovers would take {taken:,} bytes")
        return
    for name in sorted(found.keys() | known.keys()):
        one, own = found.get(name), known.get(name)
        if one is None or own is None or one.shape != own.shape:
            raise OtherModel(name)
        halves = (DTYPES["F16"], DTYPES["F32"]) if own.dtype.kind == "f" else (own.dtype,)
        require(one.dtype in halves, f"{name!r} has type {one.dtype}, and not that of the model")
