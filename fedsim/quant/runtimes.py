"""What computes a client's model when it is tested: fedsim's emulation, or a runtime that ships.

Imports no torch, so that scenarios are checked without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedsim.registry import Lazy, Registry

EMULATED = "emulated"
"""Stands for fedsim's emulation where a runtime is named."""
EMULATED_SUMMARY = "fedsim's own emulation of the model file, inputs of layers as calibrated."


@dataclass(frozen=True)
class ModelRuntime:
    """A program that executes exported models, in one of its settings."""

    summary: str
    meaning: str
    """What it does in a few plain words, for readers of a report."""
    format: str
    """Name of the format of its files (`fedsim.quant.formats`)."""
    open: Callable[..., Any]
    """f(traced, packed weights of the layers, model, rows): a context in which a model is loaded;
    it gives f(clips, language) -> one `fedsim.speech.models.base.Hypothesis` per clip. `traced` is
    what the format's `trace` returned, for this `SpeechModel`; `rows` are those of its vocabulary
    that one of the weights has, None for all."""


RUNTIMES: Registry[ModelRuntime] = Registry("runtime")
RUNTIMES.add(
    "onnx",
    ModelRuntime(
        "The exported file in onnxruntime as it is by default: inputs rounded to 8 bits (level 4).",
        meaning="tested with the exported file in onnxruntime, which rounds inputs to 8 bits",
        format="onnx",
        open=Lazy("fedsim.export.onnx_session:by_default"),
    ),
)
RUNTIMES.add(
    "onnx_float",
    ModelRuntime(
        "The exported file in onnxruntime with inputs in float32 (level 0).",
        meaning="tested with the exported file in onnxruntime, inputs in float32",
        format="onnx",
        open=Lazy("fedsim.export.onnx_session:with_float_inputs"),
    ),
)
RUNTIMES.add(
    "openvino",
    ModelRuntime(
        "The exported file in OpenVINO as it is by default, in the precision that it chooses for"
        " the processor.",
        meaning="tested with the exported file in OpenVINO, in the precision that it chooses",
        format="openvino",
        open=Lazy("fedsim.export.openvino_session:by_default"),
    ),
)
RUNTIMES.add(
    "openvino_float",
    ModelRuntime(
        "The exported file in OpenVINO in float32.",
        meaning="tested with the exported file in OpenVINO, in float32",
        format="openvino",
        open=Lazy("fedsim.export.openvino_session:in_float"),
    ),
)
