"""What takes the place of the weights of layers in a traced graph, node by node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    initializers: list[tuple[int, Any]] = field(default_factory=list)
    """With the layer to which each belongs."""
    nodes: list[tuple[int, Any]] = field(default_factory=list)
    """Likewise, those that are written."""
    _written: dict[tuple[int, bool], Dequantized] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)
    """Names of whole weights that are written."""

    def rewritten(self, node: Any) -> list[Any]:
        """Return the nodes that take the place of one of the traced graph."""
        weights = {i: w for i, n in enumerate(node.input) if (w := self.weights.get(n))}
        if not weights:
            return [node]
        if node.op_type == "Transpose" and len(weights[0].shape) == 2:
            flipped = weights[0]
            self.weights[node.output[0]] = WeightTensor(
                flipped.layer, flipped.shape[::-1], not flipped.transposed
            )
            return []
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
