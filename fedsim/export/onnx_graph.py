"""A network traced once, and filled with the packed weights of one plan after another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fedsim.errors import FedsimError
from fedsim.export.onnx_packer import Packer, WeightTensor, turned
from fedsim.export.onnx_table import DOMAIN
from fedsim.export.onnx_weights import DEPTHS, STORED
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.weights import PackedWeight, blank_weight

OPSET = 21
"""Of a graph with integers of 4 and 8 bits."""
_OPSET_2BIT, _IR_2BIT = 25, 13
_PRODUCER = "fedsim"
_PADDING = 2
"""Bytes that a padding has at least: tag and length of an empty text."""
_MAX_LENGTH = 5
"""Bytes of the largest length of a graph, which has fewer than 2^31 bytes."""
_FLOAT = 1
"""`onnx.TensorProto.FLOAT`."""
_HALF_FROM = 64
"""Numbers from which a tensor is stored in float16 where that is exact: the cast takes 60 bytes."""


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A traced network without the weights of its layers, into which those of any plan fit."""

    traced: Any
    """`onnx.ModelProto` that takes the weights of layers as inputs; its other tensors are in
    float16 wherever that changes no number."""
    weights: Mapping[str, WeightTensor]
    """By the name of the input."""
    _planned: dict[Any, np.ndarray] = field(default_factory=dict)

    @cached_property
    def has_tables(self) -> bool:
        """Whether rows of a weight are looked up, by operators of onnxruntime's own."""
        nodes = self.traced.graph.node
        return any(node.op_type == "Gather" and node.input[0] in self.weights for node in nodes)

    @cached_property
    def newer(self) -> Any:
        """The same in the version of ONNX that has integers of 2 bits."""
        from onnx import version_converter

        newer = version_converter.convert_version(self.traced, _OPSET_2BIT)
        newer.ir_version = _IR_2BIT
        # The converter infers shapes: of what lies between, which takes bytes, and of what comes
        # out, which differ where a table has fewer rows.
        newer.graph.ClearField("value_info")
        for there, here in (
            (newer.graph.input, self.traced.graph.input),
            (newer.graph.output, self.traced.graph.output),
        ):
            del there[:]
            there.extend(here)
        return newer

    @cached_property
    def fixed_bytes(self) -> int:
        """Bytes of a file without what stands for the weights of layers, padding included.

        A file is padded to a length that is a sum over layers: the version of ONNX and the length
        of the graph's own length depend on the whole plan.
        """
        longest = 0
        for traced in (self.traced, self.newer):
            weights = dict(self.weights)
            rest = []
            for node in traced.graph.node:
                if weights.keys().isdisjoint(node.input):
                    rest.append(node)
                elif flipped := turned(node, weights):
                    weights[node.output[0]] = flipped
            bare = _model(traced, self.weights, rest, [], self.has_tables)
            inside = bare.graph.ByteSize()
            longest = max(longest, bare.ByteSize() - length_bytes(inside) + _MAX_LENGTH)
        return longest + _PADDING


def skeleton(traced: Any, weights: Sequence[np.ndarray]) -> Skeleton:
    """Return a traced network without the weights of its layers, of which it may hold some.

    Args:
        traced: `onnx.ModelProto`, which is changed.
        weights: float32 (N, ...) of each layer of the model, as they were when it was traced: a
            weight is known by its values, since tracing renames and transposes it.
    """
    known: dict[bytes, tuple[int, bool]] = {}
    for i, values in enumerate(weights):
        known.setdefault(_digest(values), (i, False))
        if values.ndim == 2:
            known.setdefault(_digest(values.T), (i, True))
    found = {
        tensor.name: WeightTensor(place[0], tuple(tensor.dims), place[1])
        for tensor in traced.graph.initializer
        if (place := _known(tensor, known))
    }
    return skeleton_of(traced, found)


def skeleton_of(traced: Any, weights: Mapping[str, WeightTensor]) -> Skeleton:
    """Return a network, an `onnx.ModelProto` which is changed, without these tensors."""
    from onnx import helper

    casts, stored = [], []
    for tensor in traced.graph.initializer:
        if tensor.name in weights:
            continue
        half = _halved(tensor)
        stored.append(half)
        if half is not tensor:
            casts.append(helper.make_node("Cast", [half.name], [tensor.name], to=_FLOAT))
    for node in traced.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
        node.ClearField("name")
    inputs = [
        helper.make_tensor_value_info(name, _FLOAT, weight.shape)
        for name, weight in weights.items()
    ]
    graph = helper.make_graph(
        [*casts, *traced.graph.node],
        "fedsim",
        [*traced.graph.input, *inputs],
        traced.graph.output,
        stored,
    )
    return Skeleton(
        helper.make_model(graph, opset_imports=traced.opset_import, ir_version=traced.ir_version),
        weights,
    )


def check_found(
    layers: Sequence[Layer], weights: Sequence[np.ndarray], graphs: Sequence[Skeleton]
) -> None:
    """Raise `FedsimError` if no graph of a model shows the weight of one of its layers."""
    seen = {one.layer for graph in graphs for one in graph.weights.values()}
    known = {_digest(weights[i]) for i in seen}  # layers with the same weight are found together
    pairs = zip(layers, weights, strict=True)
    if missing := [layer.name for layer, values in pairs if _digest(values) not in known]:
        raise FedsimError(
            f"the traced network does not show the weight of layer {missing[0]!r}"
            f" ({len(missing)} of {len(layers)} are missing): models of this class cannot be"
            f" exported"
        )


def in_float32(bare: Skeleton, weights: Sequence[np.ndarray]) -> Any:
    """Return the `onnx.ModelProto` of a network with weights (N, ...) in float32."""
    from onnx import ModelProto, numpy_helper

    model = ModelProto()
    model.CopyFrom(bare.traced)
    del model.graph.input[:]
    model.graph.input.extend(i for i in bare.traced.graph.input if i.name not in bare.weights)
    for name, weight in bare.weights.items():
        values = weights[weight.layer]
        values = np.ascontiguousarray(values.T if weight.transposed else values)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def fill(bare: Skeleton, packed: Sequence[PackedWeight], spare: int = 0) -> Any:
    """Return the `onnx.ModelProto` of a network with packed weights.

    Its bytes are `bare.fixed_bytes`, those of `layer_bytes` at the depth of each layer, and
    `spare`.

    Args:
        bare: the network.
        packed: weight of each of its layers, of 2 to 8 bits.
        spare: bytes by which it is longer than it has to be.
    """
    model, _ = _filled(bare, packed)
    table = layer_bytes(bare, [weight.shape for weight in packed], packed[0].format)
    columns = [DEPTHS.index(STORED[weight.bits]) for weight in packed]
    planned = bare.fixed_bytes + int(table[np.arange(len(packed)), columns].sum())
    _pad(model, planned + spare - model.ByteSize())
    return model


def layer_bytes(
    bare: Skeleton, shapes: Sequence[tuple[int, ...]], weight_format: WeightFormat
) -> np.ndarray:
    """Return the bytes of what stands for each layer's weight at each of `DEPTHS`, int64 (L, D).

    They depend on shape, format and bit depth of this weight alone, and never fall with the depth:
    allocators count on it, so a small weight whose parts take more at 6 bits than at 8, or at 2
    than at 4, has as much room at the higher depth.
    """
    key = weight_format, tuple(shapes)
    if key not in bare._planned:
        columns = []
        for bits in DEPTHS:
            blank = [blank_weight(shape, bits, weight_format) for shape in shapes]
            columns.append(_filled(bare, blank)[1])
        table = np.array(columns, np.int64).T
        bare._planned[key] = np.maximum.accumulate(table, axis=1)
    return bare._planned[key]


def length_bytes(n: int) -> int:
    """Return how many bytes the number n takes in a file: 7 bits in each (protobuf's varint)."""
    return max(1, -(-n.bit_length() // 7))


def _filled(bare: Skeleton, packed: Sequence[PackedWeight]) -> tuple[Any, list[int]]:
    """Return the model without padding, and the bytes in it that belong to each layer."""
    held = {one.layer for one in bare.weights.values()}
    newer = any(STORED[packed[i].bits] in (2, 6) for i in held)
    traced = bare.newer if newer else bare.traced
    packer = Packer(packed, dict(bare.weights))
    packer.find_tables(traced.graph.node)
    nodes = [new for node in traced.graph.node for new in packer.rewritten(node)]
    constants = list(packer.constants())
    owned = [0] * len(packed)
    for layer, part in (*packer.nodes, *constants):
        inside = part.ByteSize()
        owned[layer] += 1 + length_bytes(inside) + inside
    tensors = [tensor for _, tensor in constants]
    return _model(traced, bare.weights, nodes, tensors, bare.has_tables), owned


def _model(
    traced: Any,
    weights: Mapping[str, WeightTensor],
    nodes: Sequence[Any],
    more: Sequence[Any],
    has_tables: bool,
) -> Any:
    """Return a traced network with other nodes, more initializers, and no weights as inputs."""
    from onnx import helper

    graph = helper.make_graph(
        nodes,
        traced.graph.name,
        [i for i in traced.graph.input if i.name not in weights],
        traced.graph.output,
        [*traced.graph.initializer, *more],
    )
    own = [helper.make_opsetid(DOMAIN, 1)] if has_tables else []
    return helper.make_model(
        graph,
        opset_imports=[*traced.opset_import, *own],
        ir_version=traced.ir_version,
        producer_name=_PRODUCER,
    )


def _pad(model: Any, room: int) -> None:
    """Make a model so many bytes longer, at least `_PADDING`."""
    # A text of 128 letters takes two bytes more than one of 127: the size between needs an entry.
    if all(length_bytes(room - 1 - n) != n for n in range(1, _MAX_LENGTH + 1)):
        model.metadata_props.add(key="padding".ljust(96))
        room -= 100
    n = next(n for n in range(1, _MAX_LENGTH + 1) if length_bytes(room - 1 - n) == n)
    model.doc_string = " " * (room - 1 - n)


def _known(tensor: Any, known: Mapping[bytes, tuple[int, bool]]) -> tuple[int, bool] | None:
    """Return which weight an initializer is, and whether it is transposed."""
    from onnx import numpy_helper

    if tensor.data_type != _FLOAT or len(tensor.dims) < 2:
        return None
    return known.get(_digest(numpy_helper.to_array(tensor)))


def _digest(values: np.ndarray) -> bytes:
    digest = hashlib.sha256(str(values.shape).encode())
    digest.update(np.ascontiguousarray(values, np.float32).data)
    return digest.digest()


def _halved(tensor: Any) -> Any:
    """Return a tensor of float32 in float16 if that is exact, under another name."""
    from onnx import numpy_helper

    if tensor.data_type != _FLOAT or np.prod(tensor.dims) < _HALF_FROM:
        return tensor
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), values):
        return tensor
    return numpy_helper.from_array(half, f"{tensor.name}.half")
