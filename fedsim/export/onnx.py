"""Writing a model in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.errors import FedsimError
from fedsim.export import require
from fedsim.quant.switch import switch_of

if TYPE_CHECKING:
    import torch

    from fedsim.export.onnx_graph import Skeleton
    from fedsim.quant.rows import Rows
    from fedsim.quant.weights import PackedWeight
    from fedsim.speech.models.base import SpeechModel


@dataclass(frozen=True)
class Traced:
    """The files of a model, without the weights of its layers."""

    graphs: Mapping[str, Skeleton]
    """File name -> graph."""
    others: Callable[[Rows | None, str | None], Mapping[str, str]]
    """f(rows, language): file name -> text, for the rows of a vocabulary that are kept (None for
    all) and the language of whoever speaks."""


def trace(model: SpeechModel, leftovers: Mapping[str, torch.Tensor]) -> Traced:
    """Trace the network of a model, which takes seconds, for the weights of any plan.

    Args:
        model: in full precision, which it is again afterwards.
        leftovers: the rest of the state, as model files have it.

    Raises:
        FedsimError: if the model is neither a CTC recognizer of raw audio nor a Whisper, or onnx is
            not installed.
    """
    require("onnx", "onnx")
    require("onnxscript", "onnx")
    from fedsim.export.onnx_graph import check_found

    exporter = exporter_of(model)
    switch = switch_of(model)
    weights = switch.full_weights()
    values = [weights[layer.name].numpy() for layer in model.layers]
    switch.install(weights, leftovers, {})
    try:
        graphs = exporter.trace(model, values)
    finally:
        switch.restore()
    check_found(model.layers, values, list(graphs.values()))
    return Traced(graphs, partial(exporter.files, model))


def exporter_of(model: SpeechModel) -> Any:
    """Return the module that traces a model; raises `FedsimError` if none does."""
    from fedsim.export import ctc, whisper

    for exporter in (ctc, whisper):
        if exporter.is_exportable(model):
            return exporter
    raise FedsimError(
        f"model {model.id!r} is a {type(model.module).__name__}, and only CTC recognizers of raw"
        f" audio (wav2vec 2.0 and its relatives) and Whisper can be exported to onnx"
    )


def write(
    traced: Traced,
    weights: Sequence[PackedWeight],
    folder: Path,
    *,
    rows: Rows | None = None,
    language: str | None = None,
) -> None:
    """Write all files of a model with these weights into an empty folder.

    Args:
        traced: the model.
        weights: of its layers.
        folder: to write into.
        rows: of its vocabulary that one of the weights has; None for all.
        language: of whoever speaks; None to have it detected.
    """
    import onnx

    from fedsim.base.files import write_text
    from fedsim.export.onnx_graph import fill

    for name, bare in traced.graphs.items():
        filled = fill(bare, weights)
        onnx.checker.check_model(filled)
        (folder / name).write_bytes(filled.SerializeToString())
    for name, text in traced.others(rows, language).items():
        write_text(folder / name, text)
