"""Writing a model in ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsim.errors import FedsimError
from fedsim.export import require
from fedsim.export.onnx_graph import Skeleton, fill, layer_bytes, skeleton
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.modelfile import load_leftovers
from fedsim.quant.modelheader import Manifest
from fedsim.quant.rows import Rows
from fedsim.quant.sizes import Sizes
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import PackedWeight, blank_weight

if TYPE_CHECKING:
    import torch

    from fedsim.speech.models.base import SpeechModel


@dataclass(frozen=True)
class Traced:
    """The files of a model, without the weights of its layers."""

    graphs: Mapping[str, Skeleton]
    """File name -> graph."""
    others: Mapping[str, str]
    """File name -> text."""


def sizes(
    traced: Traced, layers: Sequence[Layer], weight_format: WeightFormat, depths: Sequence[int]
) -> Sizes:
    """Return the exact bytes of all files together for every plan, as a table for allocators.

    Args:
        traced: of the model.
        layers: of the model.
        weight_format: how codes of weights become numbers.
        depths: bit depths of 2 to 8, ascending.
    """
    table = np.zeros((len(layers), len(depths)), np.int64)
    for column, bits in enumerate(depths):
        blank = [blank_weight(layer.shape, bits, weight_format) for layer in layers]
        for bare in traced.graphs.values():
            table[:, column] += layer_bytes(bare, blank)
    others = sum(len(text.encode()) for text in traced.others.values())
    fixed = sum(bare.fixed_bytes for bare in traced.graphs.values())
    return Sizes(tuple(depths), table, fixed + others)


def model_sizes(
    model: SpeechModel,
    stored: Mapping[str, torch.Tensor],
    manifest: Manifest,
    depths: Sequence[int],
    rows: Rows | None = None,
) -> Sizes:
    """Return the exact bytes of all files of a model together for every plan.

    Arguments are as those of `fedsim.quant.modelfile.model_sizes`; raises as `trace`.
    """
    if rows is not None:
        raise FedsimError(
            "a model with a part of its vocabulary cannot be exported to onnx: remove"
            " model.vocabulary"
        )
    traced = trace(model, load_leftovers(stored))
    return sizes(traced, model.layers, manifest.weight_format, depths)


def trace(model: SpeechModel, leftovers: Mapping[str, torch.Tensor]) -> Traced:
    """Trace the network of a model for the weights of any plan; it takes many seconds once.

    Args:
        model: in full precision, which it is again afterwards.
        leftovers: the rest of the state, as model files have it.

    Raises:
        FedsimError: if the model is not a CTC recognizer of raw audio, or onnx is not installed.
    """
    require("onnx", "onnx")
    require("onnxscript", "onnx")
    from fedsim.export import ctc
    from fedsim.export.onnx_cache import kept_graphs

    if not ctc.is_exportable(model):
        raise FedsimError(
            f"model {model.id!r} is a {type(model.module).__name__}, and only CTC recognizers of"
            f" raw audio (wav2vec 2.0 and its relatives) can be exported to onnx"
        )

    def graphs() -> dict[str, Skeleton]:
        switch = switch_of(model)
        weights = switch.full_weights()
        switch.install(weights, leftovers, {})
        try:
            traced = ctc.trace(model)
        finally:
            switch.restore()
        values = [weights[layer.name].numpy() for layer in model.layers]
        return {ctc.GRAPH: skeleton(traced, model.layers, values)}

    return Traced(kept_graphs(model, leftovers, graphs), dict(ctc.files(model)))


def write(traced: Traced, weights: Sequence[PackedWeight], folder: Path) -> None:
    """Write all files of a model with these weights into an empty folder."""
    import onnx

    from fedsim.base.files import write_text

    for name, bare in traced.graphs.items():
        filled = fill(bare, weights)
        onnx.checker.check_model(filled)
        (folder / name).write_bytes(filled.SerializeToString())
    for name, text in traced.others.items():
        write_text(folder / name, text)
