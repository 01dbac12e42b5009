"""A quantized weight in an OpenVINO graph: its codes lie packed in the file, and are dequantized
where the weight is used.

    W' = S (q - Z)

is Constant -> Convert -> Subtract -> Multiply, of codes in the type u2, u3, u4, u6 or u8 and scales
in float16. On a processor, OpenVINO computes products with codes of 2, 4 and 8 bits as they are.
Codes of 3 and 6 bits it would unpack to float32 when the model is loaded: one more Convert, to u4
or u8, has it unpack them to 4 or 8 bits instead. Weights of convolutions are unpacked to float32.

Rows of a table of tokens are looked up, and it is multiplied with too. OpenVINO gathers rows of a
dequantized weight whose codes have 4 or 8 bits, and would unpack others to float32: of these, rows
of the codes, unpacked to 8 bits, are gathered and then dequantized. They lie once in the file.

Other depths are stored wider (`STORED`), which changes no number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.quant.granularities import GRANULARITIES, WeightFormat
from fedsim.quant.packing import pack, packed_bytes, unpack
from fedsim.quant.weights import PackedWeight

DEPTHS = (2, 3, 4, 6, 8)
"""Bit depths that are stored as they are."""
STORED = {2: 2, 3: 3, 4: 4, 5: 6, 6: 6, 7: 8, 8: 8}
"""Bit depth -> the depth at which it is stored."""
UNPACKED = {3: 4, 6: 8}
"""Stored depth -> the depth to which it is unpacked when the model is loaded."""
_GATHERED, _LOOKED_UP = (4, 8), 8
"""Stored depths of which OpenVINO gathers rows as they are; the depth to which it unpacks others
to do so."""
_BLOCK = 3
"""Bytes in which codes of 3 or 6 bits lie together."""


@dataclass(frozen=True)
class Stored:
    """A constant of the file."""

    type: str
    """A name in `openvino.Type`."""
    shape: tuple[int, ...]
    data: np.ndarray
    """Its bytes."""

    def constant(self) -> Any:
        """Return the node, with the bytes copied."""
        import openvino

        tensor = openvino.Tensor(
            self.data, openvino.Shape(list(self.shape)), getattr(openvino.Type, self.type)
        )
        return openvino.op.Constant(tensor, shared_memory=False)


@dataclass(frozen=True)
class Parts:
    """The constants of a weight."""

    codes: Stored
    """(N, K), or (N, blocks, inputs of each) where groups share scales."""
    scales: Stored
    """float16, (1, 1), (N, 1) or (N, groups, 1)."""
    zeros: Stored | None
    """Zero points in the type of the codes and the shape of the scales; None where all are
    2^(b-1)."""
    group_of: np.ndarray | None
    """The group of each block, int32; None where blocks are groups. The last group of a row may be
    shorter than the others, and blocks are as long as divides all."""


def parts(packed: PackedWeight) -> Parts:
    """Return the constants of a weight of 2 to 8 bits."""
    bits, n = STORED[packed.bits], packed.shape[0]
    n_codes = math.prod(packed.shape)
    codes = unpack(packed.payload, packed.bits, n_codes).astype(np.uint8)
    shape: tuple[int, ...] = (n, n_codes // n)
    grid, group_of = packed.scales.shape, None
    if grid[1] > 1:
        size = GRANULARITIES[packed.format.granularity].group
        assert size is not None
        block = math.gcd(shape[1], size)
        shape, grid = (n, shape[1] // block, block), (*grid, 1)
        if block < size:
            group_of = np.arange(shape[1], dtype=np.int32) // (size // block)
    zeros = None
    if packed.zeros is not None:
        stored_zeros = packed_codes(packed.zeros.astype(np.uint8), bits)
        zeros = Stored(f"u{bits}", grid, stored_zeros)
    return Parts(
        Stored(f"u{bits}", shape, packed_codes(codes, bits)),
        Stored("f16", grid, packed.scales.astype("<f2").reshape(-1).view(np.uint8)),
        zeros,
        group_of,
    )


def parts_bytes(shape: Sequence[int], bits: int, weight_format: WeightFormat) -> int:
    """Return the bytes of codes, scales and zero points of a weight of this shape."""
    n_zeros = weight_format.n_scales(shape) if weight_format.zero_points else 0
    codes = sum(_codes_bytes(n, STORED[bits]) for n in (math.prod(shape), n_zeros))
    return codes + weight_format.scale_bytes(shape)


def _codes_bytes(n: int, bits: int) -> int:
    return _BLOCK * -(-n * bits // (8 * _BLOCK)) if bits in UNPACKED else packed_bytes(n, bits)


def packed_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return codes, uint8 of any shape, as the bytes of OpenVINO's type u`bits`.

    Codes of 2, 4 and 8 bits follow each other, the first in the lowest bits. Eight codes of 3 bits
    are three bytes: the low two bits of four codes, of the other four, and the high bits of all.
    Four codes of 6 bits are three bytes: the low four bits of two codes, of the other two, and the
    high two bits of all. In these the first code is in the highest bits.
    """
    if bits not in UNPACKED:
        return pack(codes, bits)
    low, per_block = (2, 4)[bits == 6], 8 * _BLOCK // bits
    flat = codes.reshape(-1)
    blocks = np.pad(flat, (0, -flat.size % per_block)).reshape(-1, per_block)
    lows, highs = blocks & ((1 << low) - 1), blocks >> low
    columns = [*np.split(lows, 2, axis=1), highs]
    return np.stack([_from_the_top(column) for column in columns], axis=1).reshape(-1)


def _from_the_top(codes: np.ndarray) -> np.ndarray:
    """Return a byte for each row of codes (rows, n), of 8 / n bits, the first in the highest."""
    width = 8 // codes.shape[1]
    shifts = np.arange(8 - width, -1, -width, dtype=np.uint8)
    return np.bitwise_or.reduce(codes << shifts, axis=1)


@dataclass
class WeightNodes:
    """The nodes of one weight, whose constants all that reads it shares."""

    packed: PackedWeight
    """Of 2 to 8 bits."""
    shared: dict[Any, Any]
    """Constants that weights share, by value; added to as needed."""
    longest_as: int | None = None
    """A bit depth whose zero point is written, with all nodes that any depth needs."""

    def __post_init__(self) -> None:
        self._parts = parts(self.packed)
        self._codes, self._scales = self._parts.codes.constant(), self._parts.scales.constant()
        self._zeros = None if self._parts.zeros is None else self._parts.zeros.constant()

    def whole(self) -> Any:
        """Return the node that gives the weight in float32 and its own shape."""
        import openvino.opset13 as ops

        wider = UNPACKED.get(STORED[self.packed.bits]) if self.longest_as is None else _LOOKED_UP

        def as_float(codes: Any) -> Any:
            return ops.convert(ops.convert(codes, f"u{wider}") if wider else codes, "f32")

        scales = self._spread(ops.convert(self._scales, "f32"), 1)
        zeros = None if self._zeros is None else self._spread(as_float(self._zeros), 1)
        weight = self._centred(as_float(self._codes), zeros, scales)
        if self._parts.codes.shape != self.packed.shape:
            weight = ops.reshape(weight, self._constant(np.array(self.packed.shape)), False)
        return weight

    def looks_up(self) -> bool:
        """Return whether `rows` is needed for a look-up.

        OpenVINO 2026.4 gathers rows of a dequantized weight with codes of 4 and 8 bits, unpacks
        others to float32, and refuses a model where groups do not divide the row.
        """
        is_gathered = STORED[self.packed.bits] in _GATHERED and self._parts.group_of is None
        return self.longest_as is not None or not is_gathered

    def rows(self, ids: Any) -> Any:
        """Return the node that gives the rows (B, U, K) of a weight (N, K) that tokens (B, U) have,
        in float32; OpenVINO unpacks the codes to 8 bits when the model is loaded."""
        import openvino.opset13 as ops

        zero = self._constant(np.array(0))

        def of(grid: Any) -> Any:
            """Return what rows share, or all rows."""
            if self._parts.scales.shape[0] == 1:
                return grid
            return self._spread(ops.gather(grid, ids, zero), 2)

        codes = ops.gather(ops.convert(self._codes, f"u{_LOOKED_UP}"), ids, zero)
        zeros = None
        if self._zeros is not None:
            zeros = ops.convert(of(ops.convert(self._zeros, f"u{_LOOKED_UP}")), "f32")
        scales = of(ops.convert(self._scales, "f32"))
        rows = self._centred(ops.convert(codes, "f32"), zeros, scales)
        if len(self._parts.codes.shape) > 2:
            rows = ops.reshape(rows, self._constant(np.array([0, 0, -1])), True)
        return rows

    def _centred(self, codes: Any, zeros: Any, scales: Any) -> Any:
        import openvino.opset13 as ops

        if zeros is None:
            middle = 1 << ((self.longest_as or self.packed.bits) - 1)
            zeros = self._constant(np.array([middle], np.float32))
        return ops.multiply(ops.subtract(codes, zeros), scales)

    def _spread(self, grid: Any, axis: int) -> Any:
        """Return what groups share for each block."""
        import openvino.opset13 as ops

        group_of = self._parts.group_of
        if group_of is None:
            return grid
        return ops.gather(grid, self._constant(group_of), self._constant(np.array(axis)))

    def _constant(self, values: np.ndarray) -> Any:
        import openvino.opset13 as ops

        key = str(values.dtype), values.shape, values.tobytes()
        if key not in self.shared:
            self.shared[key] = ops.constant(values)
        return self.shared[key]
