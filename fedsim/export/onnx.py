"""Writing a model in ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.base.files import write_text
from fedsim.errors import FedsimError
from fedsim.export import require
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import dequantize_weight

if TYPE_CHECKING:
    import torch

    from fedsim.quant.weights import PackedWeight
    from fedsim.speech.models.base import SpeechModel

GRAPH = "model.onnx"


def write(
    model: SpeechModel,
    weights: Sequence[PackedWeight],
    leftovers: Mapping[str, torch.Tensor],
    folder: Path,
) -> None:
    """Write the graph and the files beside it into an empty folder.

    Raises:
        FedsimError: if the model is not a CTC recognizer of raw audio, or onnx is not installed.
    """
    onnx = require("onnx", "onnx")
    require("onnxscript", "onnx")
    from fedsim.export import ctc
    from fedsim.export.onnx_graph import pack_weights

    if not ctc.is_exportable(model):
        raise FedsimError(
            f"model {model.id!r} is a {type(model.module).__name__}, and only CTC recognizers of"
            f" raw audio (wav2vec 2.0 and its relatives) can be exported to onnx"
        )
    switch = switch_of(model)
    pairs = zip(model.layers, weights, strict=True)
    switch.install({layer.name: dequantize_weight(one) for layer, one in pairs}, leftovers, {})
    try:
        traced = ctc.trace(model)
    finally:
        switch.restore()
    packed = pack_weights(traced, model.layers, weights)
    onnx.checker.check_model(packed)
    (folder / GRAPH).write_bytes(packed.SerializeToString())
    for name, text in ctc.files(model):
        write_text(folder / name, text)
