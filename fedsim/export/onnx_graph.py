"""A network traced once, and filled with the packed weights of one plan after another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.errors import FedsimError
from fedsim.export.onnx_packer import Packer, WeightTensor
from fedsim.export.onnx_table import DOMAIN
from fedsim.export.onnx_weights import STORED
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
    packer = Packer(packed, dict(bare.weights))
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
