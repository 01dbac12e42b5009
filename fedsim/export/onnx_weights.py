"""A quantized weight in an ONNX graph: its codes lie packed in the file, and are dequantized where
the weight is used.

    W' = S (q - Z)

is `DequantizeLinear` of v = q - 2^(b-1) in the type INT2, INT4 or INT8, or with zero points of q
and Z in UINT2, UINT4 or UINT8. Scales are stored in float16, as in a model file, and cast. A
runtime with kernels for packed weights fuses what follows: onnxruntime makes one `MatMulNBits` of
dequantization and product.

ONNX has no type of 6 bits: a code is its high four bits and its low two, which is exact:

    S (4 h + l - Z) = 4 S (h - Z_h) + S (l - Z_l),    Z = 4 Z_h + Z_l.

Other depths are stored wider (`STORED`), which changes no number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.quant.granularities import GRANULARITIES
from fedsim.quant.packing import pack, unpack
from fedsim.quant.weights import PackedWeight

DEPTHS = (2, 4, 6, 8)
"""Bit depths that are stored as they are."""
STORED = {2: 2, 3: 4, 4: 4, 5: 6, 6: 6, 7: 8, 8: 8}
"""Bit depth -> the depth at which it is stored."""
_FOUR = 2
"""Bits of a code of 6 that its low part has."""
_EVEN = 4
"""Codes of 2 bits in a byte. onnxruntime 1.32 mixes up the columns of a (K, N) matrix of 2-bit
codes unless N is a multiple of it: such a matrix gets columns of zeros, and the product is cut."""


@dataclass(frozen=True)
class Dequantized:
    """A weight as a sum of dequantized tensors."""

    nodes: tuple[Any, ...]
    initializers: tuple[Any, ...]
    outputs: tuple[str, ...]
    """Names of the tensors whose sum is the weight: two at 6 bits, else one."""
    n_columns: int
    """Columns of a transposed weight: N, or a little more, and those behind N are zeros."""


def dequantized(name: str, packed: PackedWeight, *, transposed: bool) -> Dequantized:
    """Return the nodes that dequantize a weight.

    Args:
        name: prefix of all names.
        packed: a weight of 2 to 8 bits, seen as a matrix (N, K).
        transposed: whether the tensors are (K, N), as a product with the weight needs them, or
            (N, K).
    """
    from onnx import TensorProto, helper

    n = packed.shape[0]
    spare = -n % _EVEN if transposed and STORED[packed.bits] in (2, 6) else 0
    layout = _Layout(packed, transposed, spare)
    nodes, initializers, outputs = [], [layout.scales(f"{name}.scales")], []
    nodes.append(_cast(f"{name}.scales", f"{name}.scale"))
    for part in _parts(packed):
        own, scale = f"{name}.{part.bits}bit", f"{name}.scale"
        if part.shift:
            initializers.append(helper.make_tensor(f"{own}.factor", TensorProto.FLOAT, (), [4.0]))
            nodes.append(helper.make_node("Mul", [scale, f"{own}.factor"], [f"{own}.scale"]))
            scale = f"{own}.scale"
        inputs = [f"{own}.codes", scale]
        initializers.append(layout.codes(inputs[0], part))
        if part.zeros is not None:
            inputs.append(f"{own}.zeros")
            initializers.append(layout.zeros(inputs[2], part))
        outputs.append(f"{own}.weight")
        nodes.append(helper.make_node("DequantizeLinear", inputs, [outputs[-1]], **layout.axis))
    return Dequantized(tuple(nodes), tuple(initializers), tuple(outputs), n + spare)


@dataclass(frozen=True)
class _Part:
    """Some bits of all codes: 2, 4 or 8 of them, unsigned or as signed numbers."""

    bits: int
    shift: int
    """Position of the lowest of these bits in a code."""
    signed: bool
    codes: np.ndarray
    """(N, K) integers; of negative ones the lowest `bits` bits are stored."""
    zeros: np.ndarray | None
    """As the grid of scales; None where 0 is the zero point."""

    @property
    def type(self) -> int:
        from onnx import TensorProto

        return getattr(TensorProto, f"{'' if self.signed else 'U'}INT{self.bits}")


def _parts(packed: PackedWeight) -> Iterator[_Part]:
    n = packed.shape[0]
    codes = unpack(packed.payload, packed.bits, math.prod(packed.shape)).astype(np.int32)
    codes, zeros, signed = codes.reshape(n, -1), packed.zeros, packed.zeros is None
    if zeros is None:
        codes -= 1 << (packed.bits - 1)
    stored = STORED[packed.bits]
    if stored != 6:
        yield _Part(stored, 0, signed, codes, zeros)
        return
    low = (1 << _FOUR) - 1
    high_zeros = None if zeros is None else zeros >> _FOUR
    yield _Part(4, _FOUR, signed, codes >> _FOUR, high_zeros)
    yield _Part(2, 0, False, codes & low, None if zeros is None else zeros & low)


class _Layout:
    """How codes and scales of a weight lie in the file, with `spare` rows of zeros."""

    def __init__(self, packed: PackedWeight, transposed: bool, spare: int) -> None:
        granularity = GRANULARITIES[packed.format.granularity]
        self._packed, self._transposed, self._spare = packed, transposed, spare
        self._grouped = packed.scales.shape[1] > 1
        self._single = not granularity.per_channel
        self.axis: dict[str, Any] = {}
        """Attributes of the `DequantizeLinear`."""
        if self._grouped:
            assert granularity.group is not None
            self.axis = {"axis": 0 if transposed else 1, "block_size": granularity.group}
        elif not self._single:
            self.axis = {"axis": 1 if transposed else 0}

    def scales(self, name: str) -> Any:
        from onnx import TensorProto, helper

        scales = self._shared(self._packed.scales.astype("<f2"))
        return helper.make_tensor(
            name, TensorProto.FLOAT16, scales.shape, scales.tobytes(), raw=True
        )

    def codes(self, name: str, part: _Part) -> Any:
        # Where rows share a zero point with others, its code is what stands for zero.
        zero = 0 if part.zeros is None or not self._single else int(part.zeros.item())
        codes = np.pad(part.codes, ((0, self._spare), (0, 0)), constant_values=zero)
        return _integers(name, part, codes.T if self._transposed else codes)

    def zeros(self, name: str, part: _Part) -> Any:
        assert part.zeros is not None
        return _integers(name, part, self._shared(part.zeros))

    def _shared(self, grid: np.ndarray) -> np.ndarray:
        """Return what weights share, from its grid (rows, columns), as ONNX wants it."""
        if self._single:
            return grid.reshape(())
        grid = np.pad(grid, ((0, self._spare), (0, 0)))
        if not self._grouped:
            return grid.reshape(-1)
        return np.ascontiguousarray(grid.T if self._transposed else grid)


def _integers(name: str, part: _Part, values: np.ndarray) -> Any:
    from onnx import helper

    unsigned = (values & ((1 << part.bits) - 1)).astype(np.uint16)
    packed = pack(unsigned, part.bits)
    return helper.make_tensor(name, part.type, values.shape, packed.tobytes(), raw=True)


def _cast(source: str, target: str) -> Any:
    from onnx import TensorProto, helper

    return helper.make_node("Cast", [source], [target], to=TensorProto.FLOAT)
