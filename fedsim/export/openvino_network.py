"""A traced network as OpenVINO reads it, without the weights of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.export.onnx_graph import Skeleton

_HALF_FROM = 256
"""Numbers from which a tensor is stored in float16, if that is exact: the cast takes 300 bytes."""
_MANY_CHANNELS, _TILE = 16, 32
"""Where OpenVINO 2026.4 fails in bfloat16, see `_lengthen`."""


@dataclass(frozen=True)
class Network:
    """A traced network without the weights of its layers, into which those of any plan fit."""

    model: Any
    """`openvino.Model` that takes the weights of layers, in their own shapes, as inputs."""
    layers: Mapping[str, int]
    """Name of such an input -> number of the layer."""


def network(bare: Skeleton) -> Network:
    """Return a traced network as OpenVINO reads it."""
    import openvino
    import openvino.opset13 as ops
    from openvino.passes import ConstantFolding, Manager

    # The reader of the runtime itself: `openvino.convert_model` sends statistics of its use.
    model = openvino.Core().read_model(model=bare.traced.SerializeToString())
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    weights: dict[str, Any] = {}
    for old in list(model.get_parameters()):
        found = [bare.weights[name] for name in old.output(0).get_names() & bare.weights.keys()]
        if not found:
            continue
        name = f"layer {found[0].layer}"
        turned = found[0].transposed
        if name not in weights:
            weights[name] = ops.parameter(found[0].shape[:: -1 if turned else 1], np.float32)
            weights[name].set_friendly_name(name)
        _use(old, weights[name], turned)
        model.remove_parameter(old)
    model.add_parameters(list(weights.values()))
    for node in model.get_ops():
        if node.get_type_name() == "Constant":
            _halve(node)
        elif node.get_type_name() in ("Convolution", "GroupConvolution"):
            _lengthen(node)
        elif node.get_type_name() == "Floor":
            _divide_whole(node)
    model.validate_nodes_and_infer_types()
    shown = {name for port in (*model.inputs, *model.outputs) for name in port.get_names()}
    for node in model.get_ops():
        for port in node.outputs():
            port.set_names(port.get_names() & shown)
    model.set_friendly_name("fedsim")
    return Network(model, {name: int(name.split()[1]) for name in weights})


def _use(old: Any, weight: Any, turned: bool) -> None:
    """Let all that reads a tensor take a weight (N, ...) in its place, or the weight's transpose.

    A product is one with the transpose, which OpenVINO computes with packed codes.
    """
    import openvino.opset13 as ops

    for target in old.output(0).get_target_inputs():
        node, index = target.get_node(), target.get_index()
        kind = node.get_type_name()
        if kind == "Transpose" and index == 0 and len(weight.get_output_shape(0)) == 2:
            _use(node, weight, not turned)
        elif turned and kind == "MatMul" and index == 1:
            how = node.get_attributes()
            product = ops.matmul(
                node.input_value(0), weight, how["transpose_a"], not how["transpose_b"]
            )
            node.output(0).replace(product.output(0))
        elif turned:
            target.replace_source_output(ops.transpose(weight, np.array([1, 0])).output(0))
        else:
            target.replace_source_output(weight.output(0))


def _halve(node: Any) -> None:
    """Store a constant in float16 if that is exact."""
    import openvino
    import openvino.opset13 as ops

    if node.get_element_type() != openvino.Type.f32:
        return
    values = node.get_data()
    if values.size < _HALF_FROM:
        return
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if np.array_equal(half.astype(np.float32), values):
        cast = ops.convert(openvino.op.Constant(half), "f32")
        node.output(0).replace(cast.output(0))


def _lengthen(node: Any) -> None:
    """Give the kernel of a convolution (B, C, T) one more tap, of zeros, where OpenVINO fails.

    In bfloat16, the default where a processor has AMX, OpenVINO 2026.4 computes nonsense if few
    input channels times taps are a multiple of 32.
    """
    import openvino.opset13 as ops

    how, kernel = node.get_attributes(), node.input_value(1)
    *_, channels, taps = kernel.get_shape()
    is_plain = len(how["strides"]) == 1 and how["auto_pad"] == "explicit"
    if not is_plain or channels >= _MANY_CHANNELS or channels * taps % _TILE:
        return
    ends = [np.array([0] * (len(kernel.get_shape()) - 1) + [n]) for n in (0, 1)]
    convolution = (
        ops.convolution if node.get_type_name() == "Convolution" else ops.group_convolution
    )
    longer = convolution(
        node.input_value(0),
        ops.pad(kernel, *ends, "constant"),
        how["strides"],
        how["pads_begin"],
        [how["pads_end"][0] + how["dilations"][0]],
        how["dilations"],
    )
    node.output(0).replace(longer.output(0))


def _divide_whole(node: Any) -> None:
    """Let numbers of samples be divided as integers, not as floats whose quotient is rounded down:
    bfloat16 has eight bits for them.

    The division is one without remainder: OpenVINO 2026.4 does not round the quotient of integers
    down where it computes several operations at once.
    """
    import openvino
    import openvino.opset13 as ops

    quotient = node.input_value(0).get_node()
    if quotient.get_type_name() != "Divide":
        return
    cast, scale = (port.get_node() for port in quotient.input_values())
    if (cast.get_type_name(), scale.get_type_name()) != ("Convert", "Constant"):
        return
    dividend, by = cast.input_value(0), scale.get_data()
    if dividend.get_element_type() != openvino.Type.i64 or (by != by.astype(np.int64)).any():
        return
    divisor = ops.constant(by.astype(np.int64))
    multiple = ops.subtract(dividend, ops.floor_mod(dividend, divisor))
    whole = ops.divide(multiple, divisor)
    for target in node.output(0).get_target_inputs():
        after = target.get_node()
        if after.get_output_element_type(0) == openvino.Type.i64:
            after.output(0).replace(whole.output(0))
