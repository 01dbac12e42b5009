"""Graphs in ONNX that give the outputs of their layers too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.export import require
from fedsim.export.onnx import Traced
from fedsim.export.onnx_graph import Skeleton
from fedsim.export.onnx_session import options
from fedsim.export.parting import Probe
from fedsim.quant.weights import dequantize_weight

if TYPE_CHECKING:
    from fedsim.quant.weights import PackedWeight

_FLOAT = 1
"""`onnx.TensorProto.FLOAT`."""
_IN_FLOAT32 = 0
"""The accuracy level of onnxruntime that rounds no inputs."""


def probe(
    traced: Traced, name: str, weights: Sequence[PackedWeight], folder: Path, setting: str
) -> Probe:
    """Return a graph of exported files with the outputs of its layers.

    Arguments are those of `fedsim.quant.formats.ExportFormat.probe`.
    """
    bare = traced.graphs[name]
    seen = _outputs(bare)
    session = _session(_with_outputs(_shapeless(bare), seen), _IN_FLOAT32)
    values = {}
    for tensor, place in bare.weights.items():
        weight = dequantize_weight(weights[place.layer]).numpy()
        values[tensor] = np.ascontiguousarray(weight.T if place.transposed else weight)
    file = partial(_opened, folder / name, seen, int(setting))
    return Probe(list(seen.values()), _Fed(session, values), file)


@dataclass(frozen=True)
class _Fed:
    """A session of a graph that takes weights as inputs, with the weights."""

    session: Any
    weights: Mapping[str, np.ndarray]

    def get_inputs(self) -> list[Any]:
        """Return the inputs of the graph, without the weights."""
        return [i for i in self.session.get_inputs() if i.name not in self.weights]

    def run(self, names: None, feeds: Mapping[str, np.ndarray]) -> Any:
        """Return the outputs of the graph."""
        return self.session.run(names, {**feeds, **self.weights})


def _outputs(bare: Skeleton) -> dict[str, int]:
    """Return the tensors that layers compute -> the number of the layer, in the graph's order."""
    layers = {name: tensor.layer for name, tensor in bare.weights.items()}
    known = {output.name for output in bare.traced.graph.output}
    seen = {}
    for node in bare.traced.graph.node:
        used = [layers[name] for name in node.input if name in layers]
        if used and node.op_type == "Transpose":
            layers[node.output[0]] = used[0]
        elif used and node.output[0] not in known:
            seen[node.output[0]] = used[0]
    return seen


def _shapeless(bare: Skeleton) -> Any:
    """Return a copy of the graph whose weights may have fewer rows, as a trimmed vocabulary has."""
    from onnx import ModelProto

    copy = ModelProto()
    copy.CopyFrom(bare.traced)
    for value in copy.graph.input:
        if value.name in bare.weights:
            value.type.tensor_type.ClearField("shape")
    return copy


def _opened(file: Path, seen: Mapping[str, int], level: int) -> Any:
    import onnx

    return _session(_with_outputs(onnx.load(file), seen), level)


def _with_outputs(graph: Any, names: Mapping[str, int]) -> Any:
    from onnx import helper

    graph.graph.output.extend(helper.make_tensor_value_info(name, _FLOAT, None) for name in names)
    return graph


def _session(graph: Any, level: int) -> Any:
    runtime = require("onnxruntime", "onnx")
    return runtime.InferenceSession(
        graph.SerializeToString(), options(level), ["CPUExecutionProvider"]
    )
