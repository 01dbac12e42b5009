"""Where exported files and their numbers part: the first layer whose outputs differ.

The reference is the same graph with the same dequantized weights in float32, run on the same inputs
by the same runtime, so that what differs is how packed weights are stored and computed with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.export.onnx import exporter_of
from fedsim.quant.formats import FORMATS

if TYPE_CHECKING:
    from fedsim.quant.weights import PackedWeight
    from fedsim.speech.models.base import SpeechModel

_CALLS = 4
"""Calls of a graph that are compared: a decoder is called for every token."""
_SMALL = 1e-3
"""Relative difference of a graph's output below which it parts nowhere."""


@dataclass(frozen=True)
class Parting:
    """The first layer that accounts for half of what the output of its graph differs by."""

    graph: str
    """File name; in ONNX, where a format names it otherwise."""
    layer: str
    difference: float
    """|x - y| / |y| of the layer's output."""
    final: float
    """The same of the graph's output."""


@dataclass(frozen=True)
class Probe:
    """A graph twice, each with the outputs of layers behind its own outputs."""

    layers: Sequence[int]
    """Number of the layer behind each of these further outputs, in the graph's order."""
    in_float32: Any
    """A session, as onnxruntime's, of the graph with weights in float32."""
    from_file: Callable[[], Any]
    """Opens a session of the graph as it lies in the file."""


def first_parting(
    model: SpeechModel,
    traced: Any,
    weights: Sequence[PackedWeight],
    folder: Path,
    clip: np.ndarray,
    *,
    to: str,
    setting: str,
) -> Parting | None:
    """Return where exported files and their numbers part on a clip; None if they do not.

    Args:
        model: in full precision.
        traced: its network, as the format's `trace` returned it.
        weights: packed weight of each layer.
        folder: of the exported files.
        clip: float32 (samples,) at 16 kHz.
        to: the format of the files.
        setting: of the format's program, in which the files are run.
    """
    recorders: dict[str, _Recorder] = {}

    def recorded(name: str) -> _Recorder:
        probe = FORMATS[to].probe(traced, name, weights, folder, setting)
        recorders[name] = _Recorder(probe)
        return recorders[name]

    exporter_of(model, to).recognizer(folder, recorded)(clip)
    for name, recorder in recorders.items():
        layers, session = recorder.probe.layers, recorder.probe.from_file()
        for feeds, expected in recorder.calls:
            if found := _compared(session.run(None, feeds), expected, layers):
                layer, difference, final = found
                return Parting(name, model.layers[layer].name, difference, final)
    return None


@dataclass
class _Recorder:
    """A session with weights in float32, which keeps what it was given and computed."""

    probe: Probe
    calls: list[tuple[Mapping[str, np.ndarray], list[np.ndarray]]] = field(default_factory=list)

    def get_inputs(self) -> list[Any]:
        """Return the inputs of the graph."""
        return list(self.probe.in_float32.get_inputs())

    def run(self, names: None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of the graph."""
        found: list[np.ndarray] = self.probe.in_float32.run(names, feeds)
        if len(self.calls) < _CALLS:
            # Copies: a decoder bars tokens in its logits.
            self.calls.append((dict(feeds), [output.copy() for output in found]))
        return found[: len(found) - len(self.probe.layers)]


def _compared(
    found: list[np.ndarray], expected: list[np.ndarray], layers: Sequence[int]
) -> tuple[int, float, float] | None:
    """Return the number of the first layer that parts, its difference and that of the output."""
    differences = [_relative(*pair) for pair in zip(found, expected, strict=True)]
    final, inside = differences[0], differences[len(differences) - len(layers) :]
    if final < _SMALL:
        return None
    pairs = zip(layers, inside, strict=True)
    return next(((i, d, final) for i, d in pairs if d > final / 2), (layers[-1], inside[-1], final))


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    size = float(np.linalg.norm(expected))
    return float(np.linalg.norm(found - expected)) / size if size else 0.0
