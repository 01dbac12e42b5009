"""Where exported files and their numbers part: the first layer whose outputs differ.

The reference is the same graph with the same dequantized weights in float32, run on the same inputs
by the same runtime, so that what differs is how packed weights are stored and computed with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.export import require
from fedsim.export.onnx import Traced, exporter_of
from fedsim.export.onnx_graph import Skeleton
from fedsim.export.onnx_session import options
from fedsim.quant.weights import dequantize_weight

if TYPE_CHECKING:
    from fedsim.quant.weights import PackedWeight
    from fedsim.speech.models.base import SpeechModel

_CALLS = 4
"""Calls of a graph that are compared: a decoder is called for every token."""
_SMALL = 1e-3
"""Relative difference of a graph's output below which it parts nowhere."""
_FLOAT = 1
"""`onnx.TensorProto.FLOAT`."""


@dataclass(frozen=True)
class Parting:
    """The first layer that accounts for half of what the output of its graph differs by."""

    graph: str
    layer: str
    difference: float
    """|x - y| / |y| of the layer's output."""
    final: float
    """The same of the graph's output."""


def first_parting(
    model: SpeechModel,
    traced: Traced,
    weights: Sequence[PackedWeight],
    folder: Path,
    clip: np.ndarray,
    level: int,
) -> Parting | None:
    """Return where exported files and their numbers part on a clip; None if they do not.

    Args:
        model: in full precision.
        traced: its network.
        weights: packed weight of each layer.
        folder: of the exported files.
        clip: float32 (samples,) at 16 kHz.
        level: accuracy level of onnxruntime at which the files are run.
    """
    import onnx

    recorders: dict[str, _Recorder] = {}

    def recorded(name: str) -> _Recorder:
        recorders[name] = _Recorder(traced.graphs[name], weights)
        return recorders[name]

    exporter_of(model).recognizer(folder, recorded)(clip)
    for name, recorder in recorders.items():
        session = _session(_with_outputs(onnx.load(folder / name), recorder.seen), level)
        for feeds, expected in recorder.calls:
            if found := _compared(session.run(None, feeds), expected, recorder):
                layer, difference, final = found
                return Parting(name, model.layers[layer].name, difference, final)
    return None


@dataclass
class _Recorder:
    """A session of a graph with weights in float32, which keeps what it was given and computed."""

    bare: Skeleton
    packed: Sequence[PackedWeight]
    calls: list[tuple[Mapping[str, np.ndarray], list[np.ndarray]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seen = _outputs(self.bare)
        self._outputs = len(self.bare.traced.graph.output)
        self._session = _session(_with_outputs(_shapeless(self.bare), self.seen), 0)
        self._weights = {}
        for name, tensor in self.bare.weights.items():
            values = dequantize_weight(self.packed[tensor.layer]).numpy()
            self._weights[name] = np.ascontiguousarray(values.T if tensor.transposed else values)

    def get_inputs(self) -> list[Any]:
        """Return the inputs of the graph, without the weights."""
        return [i for i in self._session.get_inputs() if i.name not in self._weights]

    def run(self, names: None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of the graph."""
        found = self._session.run(names, {**feeds, **self._weights})
        if len(self.calls) < _CALLS:
            # Copies: a decoder bars tokens in its logits.
            self.calls.append((dict(feeds), [output.copy() for output in found]))
        return found[: self._outputs]


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


def _with_outputs(graph: Any, names: Mapping[str, int]) -> Any:
    from onnx import helper

    graph.graph.output.extend(helper.make_tensor_value_info(name, _FLOAT, None) for name in names)
    return graph


def _session(graph: Any, level: int) -> Any:
    runtime = require("onnxruntime", "onnx")
    return runtime.InferenceSession(
        graph.SerializeToString(), options(level), ["CPUExecutionProvider"]
    )


def _compared(
    found: list[np.ndarray], expected: list[np.ndarray], recorder: _Recorder
) -> tuple[int, float, float] | None:
    """Return the number of the first layer that parts, its difference and that of the output."""
    differences = [_relative(*pair) for pair in zip(found, expected, strict=True)]
    layers = list(recorder.seen.values())
    final, inside = differences[0], differences[len(differences) - len(layers) :]
    if final < _SMALL:
        return None
    pairs = zip(layers, inside, strict=True)
    return next(((i, d, final) for i, d in pairs if d > final / 2), (layers[-1], inside[-1], final))


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    size = float(np.linalg.norm(expected))
    return float(np.linalg.norm(found - expected)) / size if size else 0.0
