"""A table of tokens in an ONNX graph, which is a weight of a product too: the output head.

onnxruntime multiplies with packed codes where a `DequantizeLinear` is followed by a product, but
not if its codes are looked up as well: the whole table would be dequantized for every token. So the
codes lie once in the file, as the bytes that `MatMulNBits` takes (N, blocks, bytes of a block), and
a look-up takes rows of them apart by shifts and masks.

`MatMulNBits` with inputs in float32 is fast at 4 bits only: at 2 and at 8 bits onnxruntime 1.32
dequantizes the matrix whenever it runs (240 to 350 ms for 51,865 tokens of 512 numbers, 4 ms at 4
bits). A code of 8 bits is therefore its high four bits and its low four, as one of 6 bits is its
high four and its low two:

    S (2^s h + l - Z) = 2^s S (h - Z_h) + S (l - Z_l),    Z = 2^s Z_h + Z_l.

A product with codes of 2 bits rounds its inputs to 8 bits, and is made twice: with the inputs so
rounded and with what was rounded off, which leaves an error of 1/254 of that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsim.export.onnx_weights import STORED
from fedsim.quant.granularities import GRANULARITIES
from fedsim.quant.packing import pack, unpack
from fedsim.quant.weights import PackedWeight

_PARTS = {2: ((2, 0),), 4: ((4, 0),), 6: ((4, 2), (2, 0)), 8: ((4, 4), (4, 0))}
"""Stored depth -> bits and position of the parts of a code, the highest first."""
_BLOCK = 128
"""Numbers that `MatMulNBits` reads with one scale where more of them share it."""
_LEAST = 32
"""The same for rows that are shorter; with less, `MatMulNBits` is slow at 2 bits."""
_ROUNDED = 127.0
"""Largest of the numbers to which `MatMulNBits` rounds its inputs, in each block of them."""
DOMAIN = "com.microsoft"
"""Of the operators that onnxruntime adds to ONNX."""


@dataclass
class Table:
    """The nodes of one table (N, K), with the constants that they need."""

    name: str
    """Prefix of all names."""
    packed: PackedWeight
    initializers: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        packed = self.packed
        self._n, self._k = packed.shape[0], math.prod(packed.shape[1:])
        group = GRANULARITIES[packed.format.granularity].group or _BLOCK
        self._block = min(group, max(_LEAST, 1 << (self._k - 1).bit_length()))
        self._blocks = -(-self._k // self._block)
        self._parts = _PARTS[STORED[packed.bits]]
        self._constants: set[str] = set()
        self._shared = False

    def look_up(self, ids: str, output: str) -> Iterator[Any]:
        """Yield the nodes that make rows (B, U, K) of tokens (B, U)."""
        yield from self._share()
        of = f"{output}.of"
        rows = []
        for bits, at in self._parts:
            part, row = f"{self.name}.{at}", f"{of}.{at}"
            yield _node("Gather", [f"{part}.codes", ids], f"{row}.codes")
            wide = self._integers("wide", 0, 0, self._blocks, self._block)
            yield from self._apart(f"{row}.codes", f"{row}.values", bits, wide)
            yield from self._zeros_of(part, ids, row, bits)
            yield _node("Gather", [f"{part}.scales", ids], f"{row}.s")
            yield _node("Unsqueeze", [f"{row}.s", self._integers("last", -1)], f"{row}.scales")
            yield _node("Sub", [f"{row}.values", f"{row}.z"], f"{row}.centred")
            yield _node("Mul", [f"{row}.centred", f"{row}.scales"], f"{row}.row")
            rows.append(f"{row}.row")
        yield _node("Sum", rows, f"{of}.blocks")
        flat = self._integers("flat", 0, 0, -1)
        if self._blocks * self._block == self._k:
            yield _node("Reshape", [f"{of}.blocks", flat], output)
            return
        yield _node("Reshape", [f"{of}.blocks", flat], f"{of}.filled")
        ends = [self._integers(f"cut{i}", i) for i in (0, self._k, -1)]
        yield _node("Slice", [f"{of}.filled", *ends], output)

    def product(self, source: str, output: str) -> Iterator[Any]:
        """Yield the nodes that make products (B, U, N) of inputs (B, U, K) and all rows."""
        yield from self._share()
        products = []
        for bits, at in self._parts:
            part = f"{self.name}.{at}"
            inputs = [f"{part}.codes", f"{part}.scales"]
            if not self._default_zero(bits, at):
                inputs.append(f"{part}.zeros")
            factors = [source]
            if bits == 2:
                factors = [f"{output}.{at}.rounded", f"{output}.{at}.rest"]
                yield from self._rounded(source, *factors)
            for i, factor in enumerate(factors):
                products.append(f"{output}.{at}.{i}")
                yield _node(
                    "MatMulNBits",
                    [factor, *inputs],
                    products[-1],
                    domain=DOMAIN,
                    K=self._k,
                    N=self._n,
                    bits=bits,
                    block_size=self._block,
                    accuracy_level=4 if bits == 2 else 0,
                )
        yield _node("Sum", products, output)

    def _share(self) -> Iterator[Any]:
        """Yield, once, the nodes that make scales (N, blocks) and zero points of each part."""
        if self._shared:
            return
        self._shared = True
        packed, unsigned = self.packed, 1 << (STORED[self.packed.bits] - 1)
        n, blocks = self._n, self._blocks
        codes = unpack(packed.payload, packed.bits, math.prod(packed.shape)).astype(np.int32)
        codes = codes.reshape(n, self._k)
        if packed.zeros is None:
            codes += unsigned - (1 << (packed.bits - 1))
        codes = np.pad(codes, ((0, 0), (0, blocks * self._block - self._k)))
        self._raw(f"{self.name}.half", 10, packed.scales.astype("<f2"))
        yield _node("Cast", [f"{self.name}.half"], f"{self.name}.grid", to=1)
        shape = self._integers("shape", n, blocks)
        yield _node("Expand", [f"{self.name}.grid", shape], f"{self.name}.scales")
        for bits, at in self._parts:
            part, low = f"{self.name}.{at}", (1 << bits) - 1
            taken = pack((codes >> at) & low, bits).reshape(n, blocks, -1)
            self._raw(f"{part}.codes", 2, taken)
            yield _node("Mul", [f"{self.name}.scales", self._number(1 << at)], f"{part}.scales")
            if packed.zeros is None:
                if self._default_zero(bits, at):
                    continue
                byte = sum(((unsigned >> at) & low) << i for i in range(0, 8, bits))
                zeros = np.full((1, 1), byte, np.uint8)
            else:
                zeros = np.broadcast_to((packed.zeros >> at) & low, (len(packed.zeros), blocks))
                zeros = np.pad(zeros, ((0, 0), (0, -blocks % (8 // bits))))
                zeros = pack(zeros, bits).reshape(len(zeros), -1)
            self._raw(f"{part}.zero", 2, zeros)
            width = -(-blocks * bits // 8)
            shape_name = self._integers(f"zeros{bits}", n, width)
            yield _node("Expand", [f"{part}.zero", shape_name], f"{part}.zeros")

    def _default_zero(self, bits: int, at: int) -> bool:
        """Return whether a part's zero point is 2^(bits - 1), which need not be stored."""
        zero = 1 << (STORED[self.packed.bits] - 1)
        return self.packed.zeros is None and (zero >> at) & ((1 << bits) - 1) == 1 << (bits - 1)

    def _zeros_of(self, part: str, ids: str, row: str, bits: int) -> Iterator[Any]:
        """Yield the nodes that make the zero points `z` of rows (..., blocks, 1)."""
        at = int(part.rpartition(".")[2])
        if self._default_zero(bits, at):
            yield _node("Identity", [self._number(1 << (bits - 1))], f"{row}.z")
            return
        yield _node("Gather", [f"{part}.zeros", ids], f"{row}.bytes")
        flat = self._integers("flat", 0, 0, -1)
        yield from self._apart(f"{row}.bytes", f"{row}.zeros", bits, flat)
        ends = [self._integers(f"cut{i}", i) for i in (0, self._blocks, -1)]
        yield _node("Slice", [f"{row}.zeros", *ends], f"{row}.some")
        yield _node("Unsqueeze", [f"{row}.some", self._integers("last", -1)], f"{row}.z")

    def _apart(self, source: str, output: str, bits: int, shape: str) -> Iterator[Any]:
        """Yield the nodes that make numbers of a shape of the codes in bytes (B, U, ...)."""
        shifts = self._bytes(f"shifts{bits}", range(0, 8, bits))
        low = self._bytes(f"low{bits}", [(1 << bits) - 1])
        yield _node("Unsqueeze", [source, self._integers("last", -1)], f"{output}.bytes")
        yield _node("BitShift", [f"{output}.bytes", shifts], f"{output}.shifted", direction="RIGHT")
        yield _node("BitwiseAnd", [f"{output}.shifted", low], f"{output}.codes")
        yield _node("Reshape", [f"{output}.codes", shape], f"{output}.whole")
        yield _node("Cast", [f"{output}.whole"], output, to=1)

    def _rounded(self, source: str, rounded: str, rest: str) -> Iterator[Any]:
        """Yield the nodes that round inputs (B, U, K) as the kernel will, and what is left."""
        filled = source
        if spare := self._blocks * self._block - self._k:
            filled = f"{rounded}.filled"
            yield _node("Pad", [source, self._integers("spare", 0, 0, 0, 0, 0, spare)], filled)
        wide = self._integers("wide", 0, 0, self._blocks, self._block)
        yield _node("Reshape", [filled, wide], f"{rounded}.blocks")
        yield _node("Abs", [f"{rounded}.blocks"], f"{rounded}.abs")
        last = self._integers("last", -1)
        yield _node("ReduceMax", [f"{rounded}.abs", last], f"{rounded}.most", keepdims=1)
        least = self._number(float(np.finfo(np.float32).tiny))
        yield _node("Max", [f"{rounded}.most", least], f"{rounded}.range")
        yield _node("Div", [f"{rounded}.range", self._number(_ROUNDED)], f"{rounded}.step")
        yield _node("Div", [f"{rounded}.blocks", f"{rounded}.step"], f"{rounded}.steps")
        yield _node("Round", [f"{rounded}.steps"], f"{rounded}.whole")
        yield _node("Mul", [f"{rounded}.whole", f"{rounded}.step"], f"{rounded}.made")
        flat = self._integers("flat", 0, 0, -1)
        made = f"{rounded}.long" if filled != source else rounded
        yield _node("Reshape", [f"{rounded}.made", flat], made)
        if made != rounded:
            ends = [self._integers(f"cut{i}", i) for i in (0, self._k, -1)]
            yield _node("Slice", [made, *ends], rounded)
        yield _node("Sub", [source, rounded], rest)

    def _integers(self, name: str, *values: int) -> str:
        return self._raw(f"{self.name}.{name}", 7, np.array(values, "<i8"))

    def _number(self, value: float) -> str:
        return self._raw(f"{self.name}.{value:g}", 1, np.array(value, "<f4"))

    def _bytes(self, name: str, values: Sequence[int]) -> str:
        return self._raw(f"{self.name}.{name}", 2, np.array(list(values), np.uint8))

    def _raw(self, name: str, kind: int, values: np.ndarray) -> str:
        """Add a constant of a type of `onnx.TensorProto`, once; return its name."""
        from onnx import helper

        if name not in self._constants:
            self._constants.add(name)
            self.initializers.append(
                helper.make_tensor(name, kind, values.shape, values.tobytes(), raw=True)
            )
        return name


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, list(inputs), [output], **attributes)
