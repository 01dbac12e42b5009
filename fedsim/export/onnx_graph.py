"""A network traced once, and filled with the packed weights of one plan after another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsim.errors import FedsimError
from fedsim.export.onnx_table import DOMAIN, Table
from fedsim.export.onnx_weights import STORED, Dequantized, dequantized
from fedsim.quant.layers import Layer
from fedsim.quant.weights import PackedWeight

OPSET = 21
"""Of a graph with integers of 4 and 8 bits."""
_OPSET_2BIT, _IR_2BIT = 25, 13
_FLOAT = 1
"""`onnx.TensorProto.FLOAT`."""
_HALF_FROM = 64
"""Numbers from which a tensor is stored in float16 where that is exact: the cast takes 60 bytes."""


@dataclass(frozen=True)
class WeightTensor:
    """A tensor of a traced graph that is the weight of a layer."""

    layer: int
    shape: tuple[int, ...]
    """Of the tensor: (N, ...), or (K, N) if it is transposed."""
    transposed: bool


@dataclass(frozen=True)
class Skeleton:
    """A traced network without the weights of its layers, into which those of any plan fit."""

    traced: Any
    """`onnx.ModelProto` that takes the weights of layers as inputs; its other tensors are in
    float16 wherever that changes no number."""
    weights: Mapping[str, WeightTensor]
    """By the name of the input."""


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


def fill(bare: Skeleton, packed: Sequence[PackedWeight]) -> Any:
    """Return the `onnx.ModelProto` of a network with packed weights.

    Args:
        bare: the network.
        packed: weight of each of its layers, of 2 to 8 bits.
    """
    from onnx import helper, version_converter

    traced = bare.traced
    held = {one.layer for one in bare.weights.values()}
    if any(STORED[packed[i].bits] in (2, 6) for i in held):
        traced = version_converter.convert_version(traced, _OPSET_2BIT)
        traced.ir_version = _IR_2BIT
    packer = _Packer(packed, dict(bare.weights))
    packer.find_tables(traced.graph.node)
    nodes = [new for node in traced.graph.node for new in packer.rewritten(node)]
    graph = helper.make_graph(
        nodes,
        traced.graph.name,
        # Not those of the converter, which infers shapes: a table may have fewer rows here.
        [i for i in bare.traced.graph.input if i.name not in bare.weights],
        bare.traced.graph.output,
        [*traced.graph.initializer, *packer.constants()],
    )
    own = [helper.make_opsetid(DOMAIN, 1)] if packer.tables else []
    return helper.make_model(
        graph,
        opset_imports=[*traced.opset_import, *own],
        ir_version=traced.ir_version,
        producer_name="fedsim",
    )


@dataclass
class _Packer:
    """Writes what takes the place of the weights of layers in a graph."""

    packed: Sequence[PackedWeight]
    weights: dict[str, WeightTensor]
    """By name of the tensor; transposed ones are added as they are met."""
    initializers: list[Any] = field(default_factory=list)
    tables: dict[int, Table] = field(default_factory=dict)
    """By layer: those of which rows are looked up."""
    _written: dict[tuple[int, bool], Dequantized] = field(default_factory=dict)

    def find_tables(self, nodes: Iterable[Any]) -> None:
        """Note the layers of which a graph looks rows up."""
        for node in nodes:
            if node.op_type == "Gather" and (weight := self.weights.get(node.input[0])):
                self.tables.setdefault(
                    weight.layer, Table(f"layer{weight.layer}", self.packed[weight.layer])
                )

    def constants(self) -> Iterator[Any]:
        """Yield all constants that the new nodes need."""
        yield from self.initializers
        for table in self.tables.values():
            yield from table.initializers

    def rewritten(self, node: Any) -> Iterator[Any]:
        """Yield the nodes that take the place of one of the traced graph."""
        weights = {i: w for i, n in enumerate(node.input) if (w := self.weights.get(n))}
        if not weights:
            yield node
            return
        if node.op_type == "Transpose" and len(weights[0].shape) == 2:
            flipped = weights[0]
            self.weights[node.output[0]] = WeightTensor(
                flipped.layer, flipped.shape[::-1], not flipped.transposed
            )
            return
        if node.op_type == "Gather" and 0 in weights:
            yield from self.tables[weights[0].layer].look_up(node.input[1], node.output[0])
            return
        attributes = {a.name: a for a in node.attribute}
        flips = "transB" in attributes and attributes["transB"].i == 1
        is_product = node.op_type in ("MatMul", "Gemm") and weights.keys() == {1}
        if is_product and weights[1].transposed != flips:
            yield from self._product(node, weights[1].layer)
            return
        node = _copy(node)
        for i, weight in weights.items():
            nodes, name = self._whole(weight)
            yield from nodes
            node.input[i] = name
        yield node

    def _product(self, node: Any, layer: int) -> Iterator[Any]:
        """Yield the product of a node's input and a weight, and the bias of a Gemm."""
        from onnx import helper

        if (table := self.tables.get(layer)) and len(node.input) == 2:
            yield from table.product(node.input[0], node.output[0])
            return
        weight, nodes = self._dequantized(layer, transposed=True)
        yield from nodes
        source, output = node.input[0], node.output[0]
        n, bias = self.packed[layer].shape[0], list(node.input[2:])
        cut = weight.n_columns > n
        names = [f"{output}.{i}" for i in range(len(weight.outputs))]
        for one, name in zip(weight.outputs, names, strict=True):
            yield helper.make_node("MatMul", [source, one], [name])
        if len(names) > 1:  # of MatMul and Add onnxruntime would make a Gemm, which is not packed
            names = [*names, f"{output}.sum"]
            yield helper.make_node("Sum", names[:-1], [names[-1]])
        if cut:
            ends = [f"{output}.{end}" for end in ("from", "to", "axis")]
            for name, value in zip(ends, (0, n, -1), strict=True):
                self.initializers.append(_integer(name, value))
            yield helper.make_node("Slice", [names[-1], *ends], [f"{output}.cut"])
            names.append(f"{output}.cut")
        if bias:
            yield helper.make_node("Add", [names[-1], *bias], [output])
        else:
            yield helper.make_node("Identity", [names[-1]], [output])

    def _whole(self, weight: WeightTensor) -> tuple[list[Any], str]:
        """Return the nodes that make a whole weight in the shape of the tensor, and its name."""
        from onnx import helper

        found, nodes = self._dequantized(weight.layer, transposed=False)
        (name, *more) = found.outputs
        shape, stem = self.packed[weight.layer].shape, f"layer{weight.layer}"
        if more and nodes:
            nodes.append(helper.make_node("Add", [name, *more], [f"{stem}.sum"]))
        name = f"{stem}.sum" if more else name
        if len(shape) > 2 and nodes:
            self.initializers.append(_integer(f"{stem}.shape", *shape))
            nodes.append(helper.make_node("Reshape", [name, f"{stem}.shape"], [f"{stem}.whole"]))
        name = f"{stem}.whole" if len(shape) > 2 else name
        if weight.transposed:
            turned = f"{stem}.turned"
            if nodes:
                nodes.append(helper.make_node("Transpose", [name], [turned], perm=[1, 0]))
            name = turned
        return nodes, name

    def _dequantized(self, layer: int, *, transposed: bool) -> tuple[Dequantized, list[Any]]:
        """Return a weight, and the nodes that dequantize it if this is its first use."""
        key = layer, transposed
        if key in self._written:
            return self._written[key], []
        name = f"layer{layer}{'.t' if transposed else ''}"
        found = dequantized(name, self.packed[layer], transposed=transposed)
        self._written[key] = found
        self.initializers += found.initializers
        return found, list(found.nodes)


def _copy(node: Any) -> Any:
    from onnx import NodeProto

    copied = NodeProto()
    copied.CopyFrom(node)
    return copied


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


def _integer(name: str, *values: int) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor(name, TensorProto.INT64, (len(values),), values)


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
