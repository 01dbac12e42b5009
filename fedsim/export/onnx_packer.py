"""What takes the place of the nodes of a graph that read the weights of layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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


@dataclass
class Packer:
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


def _integer(name: str, *values: int) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor(name, TensorProto.INT64, (len(values),), values)
