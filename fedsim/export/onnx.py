"""Writing a model in ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.errors import FedsimError
from fedsim.export import require
from fedsim.quant.switch import switch_of

if TYPE_CHECKING:
    import torch

    from fedsim.export.onnx_graph import Skeleton
    from fedsim.quant.weights import PackedWeight
    from fedsim.speech.models.base import SpeechModel

GRAPH = "model.onnx"


@dataclass(frozen=True)
class Traced:
    """The files of a model, without the weights of its layers."""

    graphs: Mapping[str, Skeleton]
    """File name -> graph."""
    others: Mapping[str, str]
    """File name -> text."""


def trace(model: SpeechModel, leftovers: Mapping[str, torch.Tensor]) -> Traced:
    """Trace the network of a model, which takes seconds, for the weights of any plan.

    Args:
        model: in full precision, which it is again afterwards.
        leftovers: the rest of the state, as model files have it.

    Raises:
        FedsimError: if the model is not a CTC recognizer of raw audio, or onnx is not installed.
    """
    require("onnx", "onnx")
    require("onnxscript", "onnx")
    from fedsim.export import ctc
    from fedsim.export.onnx_graph import skeleton

    if not ctc.is_exportable(model):
        raise FedsimError(
            f"model {model.id!r} is a {type(model.module).__name__}, and only CTC recognizers of"
            f" raw audio (wav2vec 2.0 and its relatives) can be exported to onnx"
        )
    switch = switch_of(model)
    weights = switch.full_weights()
    switch.install(weights, leftovers, {})
    try:
        traced = ctc.trace(model)
    finally:
        switch.restore()
    values = [weights[layer.name].numpy() for layer in model.layers]
    return Traced({GRAPH: skeleton(traced, model.layers, values)}, dict(ctc.files(model)))


def write(traced: Traced, weights: Sequence[PackedWeight], folder: Path) -> None:
    """Write all files of a model with these weights into an empty folder."""
    import onnx

    from fedsim.base.files import write_text
    from fedsim.export.onnx_graph import fill

    for name, bare in traced.graphs.items():
        filled = fill(bare, weights)
        onnx.checker.check_model(filled)
        (folder / name).write_bytes(filled.SerializeToString())
    for name, text in traced.others.items():
        write_text(folder / name, text)
