"""What takes the place of the weights of layers in a traced graph, node by node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedsim.export.onnx_table import Table
from fedsim.export.onnx_weights import Dequantized, dequantized
from fedsim.quant.weights import PackedWeight


@dataclass(frozen=True)
class WeightTensor:
    """A tensor of a traced graph that is the weight of a layer."""

    layer: int
    shape: tuple[int, ...]
    """Of the tensor: (N, ...), or (K, N) if it is transposed."""
    transposed: bool


def turned(node: Any, weights: Mapping[str, WeightTensor]) -> WeightTensor | None:
    """Return the weight (K, N) that a node makes of one (N, K), or the reverse; None if it does
    something else."""
    weight = weights.get(node.input[0]) if node.op_type == "Transpose" else None
    if weight is None or len(weight.shape) != 2:
        return None
    return WeightTensor(weight.layer, weight.shape[::-1], not weight.transposed)


@dataclass
class Packer:
    """Writes what takes the place of the weights of layers in a graph."""

    packed: Sequence[PackedWeight]
    weights: dict[str, WeightTensor]
    """By name of the tensor; transposed ones are added as they are met."""
    initializers: list[tuple[int, Any]] = field(default_factory=list)
    """With the layer to which each belongs."""
    nodes: list[tuple[int, Any]] = field(default_factory=list)
    """Likewise, those that are written."""
    tables: dict[int, Table] = field(default_factory=dict)
    """By layer: those of which rows are looked up."""
    _written: dict[tuple[int, bool], Dequantized] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)
    """Names of whole weights that are written."""

    def find_tables(self, nodes: Iterable[Any]) -> None:
        """Note the layers of which a graph looks rows up."""
        for node in nodes:
            if node.op_type == "Gather" and (weight := self.weights.get(node.input[0])):
                self.tables.setdefault(
                    weight.layer, Table(f"layer{weight.layer}", self.packed[weight.layer])
                )

    def constants(self) -> Iterator[tuple[int, Any]]:
        """Yield all constants that the new nodes need, with the layer of each."""
        yield from self.initializers
        for layer, table in self.tables.items():
            yield from ((layer, tensor) for tensor in table.initializers)

    def rewritten(self, node: Any) -> list[Any]:
        """Return the nodes that take the place of one of the traced graph."""
        weights = {i: w for i, n in enumerate(node.input) if (w := self.weights.get(n))}
        if not weights:
            return [node]
        if flipped := turned(node, self.weights):
            self.weights[node.output[0]] = flipped
            return []
        if node.op_type == "Gather" and 0 in weights:
            layer = weights[0].layer
            return self._own(layer, self.tables[layer].look_up(node.input[1], node.output[0]))
        attributes = {a.name: a for a in node.attribute}
        flips = "transB" in attributes and attributes["transB"].i == 1
        is_product = node.op_type in ("MatMul", "Gemm") and weights.keys() == {1}
        if is_product and weights[1].transposed != flips:
            return self._own(weights[1].layer, self._product(node, weights[1].layer))
        nodes, node = [], type(node).FromString(node.SerializeToString())
        for i, weight in weights.items():
            made, node.input[i] = self._whole(weight)
            nodes += self._own(weight.layer, made)
        return nodes + self._own(weights[min(weights)].layer, [node])

    def _own(self, layer: int, nodes: Iterable[Any]) -> list[Any]:
        """Return nodes, which belong to a layer."""
        found = list(nodes)
        self.nodes += [(layer, node) for node in found]
        return found

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
                self.initializers.append((layer, _integer(name, value)))
            yield helper.make_node("Slice", [names[-1], *ends], [f"{output}.cut"])
            names.append(f"{output}.cut")
        if bias:
            yield helper.make_node("Add", [names[-1], *bias], [output])
        else:
            yield helper.make_node("Identity", [names[-1]], [output])

    def _whole(self, weight: WeightTensor) -> tuple[list[Any], str]:
        """Return the nodes that make a whole weight in the shape of the tensor, and its name.

        The name is of one length at all bit depths.
        """
        from onnx import helper

        name = f"layer{weight.layer}.{'turned' if weight.transposed else 'whole'}"
        if name in self._known:
            return [], name
        self._known.add(name)
        found, nodes = self._dequantized(weight.layer, transposed=False)
        shape, (last, *more) = self.packed[weight.layer].shape, found.outputs
        steps: list[tuple[str, list[str], dict[str, Any]]] = []
        if more:
            steps.append(("Add", more, {}))
        if len(shape) > 2:
            steps.append(("Reshape", [f"{name}.shape"], {}))
            self.initializers.append((weight.layer, _integer(f"{name}.shape", *shape)))
        if weight.transposed:
            steps.append(("Transpose", [], {"perm": [1, 0]}))
        for i, (op, others, settings) in enumerate(steps or [("Identity", [], {})], start=1):
            out = name if i == max(1, len(steps)) else f"{name}.{i}"
            nodes.append(helper.make_node(op, [last, *others], [out], **settings))
            last = out
        return nodes, name

    def _dequantized(self, layer: int, *, transposed: bool) -> tuple[Dequantized, list[Any]]:
        """Return a weight, and the nodes that dequantize it if this is its first use."""
        key = layer, transposed
        if key in self._written:
            return self._written[key], []
        name = f"layer{layer}{'.t' if transposed else ''}"
        found = dequantized(name, self.packed[layer], transposed=transposed)
        self._written[key] = found
        self.initializers += [(layer, tensor) for tensor in found.initializers]
        return found, list(found.nodes)


def _integer(name: str, *values: int) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor(name, TensorProto.INT64, (len(values),), values)
