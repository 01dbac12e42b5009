"""Writing a model in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.errors import FedsimError
from fedsim.export import require
from fedsim.export.onnx_graph import Skeleton, check_found, fill, layer_bytes
from fedsim.export.onnx_weights import DEPTHS
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.modelfile import load_leftovers
from fedsim.quant.modelheader import Manifest
from fedsim.quant.rows import Rows, trimmed_layers
from fedsim.quant.sizes import Sizes
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import PackedWeight

if TYPE_CHECKING:
    import torch

    from fedsim.speech.models.base import SpeechModel

_LANGUAGE_ROOM = 64
"""Bytes that the files have for the language of whoever speaks, so that sizes depend on no user."""


@dataclass(frozen=True)
class Traced:
    """The files of a model, without the weights of its layers."""

    graphs: Mapping[str, Skeleton]
    """File name -> graph."""
    others: Callable[[Rows | None, str | None], Mapping[str, str]]
    """f(rows, language): file name -> text, for the rows of a vocabulary that are kept (None for
    all) and the language of whoever speaks."""
    others_bytes: Callable[[Rows | None], int]
    """f(rows): the bytes that all texts take in a budget. Where the rows say which of them are
    public, they depend on these and on the number of rows alone, and are an upper bound."""


def _text_bytes(texts: Mapping[str, str]) -> int:
    return sum(len(text.encode()) for text in texts.values())


def sizes(
    traced: Traced,
    layers: Sequence[Layer],
    weight_format: WeightFormat,
    depths: Sequence[int],
    rows: Rows | None = None,
) -> Sizes:
    """Return the exact bytes of all files together for every plan, as a table for allocators.

    Args:
        traced: of the model.
        layers: of the model, as they are packed.
        weight_format: how codes of weights become numbers.
        depths: some of `DEPTHS`, ascending.
        rows: of the vocabulary that one of the layers has; None for all.
    """
    shapes = [layer.shape for layer in layers]
    graphs = traced.graphs.values()
    table = np.sum([layer_bytes(bare, shapes, weight_format) for bare in graphs], axis=0)
    fixed = sum(bare.fixed_bytes for bare in graphs) + traced.others_bytes(rows)
    return Sizes(DEPTHS, table, fixed).restricted(depths)


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
    traced = trace(model, load_leftovers(stored))
    layers = trimmed_layers(model.layers, rows)
    return sizes(traced, layers, manifest.weight_format, depths, rows)


def trace(model: SpeechModel, leftovers: Mapping[str, torch.Tensor]) -> Traced:
    """Trace the network of a model for the weights of any plan; it takes many seconds once.

    Args:
        model: in full precision, which it is again afterwards.
        leftovers: the rest of the state, as model files have it.

    Raises:
        FedsimError: if the model is neither a CTC recognizer of raw audio nor a Whisper, or onnx is
            not installed.
    """
    require("onnx", "onnx")
    require("onnxscript", "onnx")
    from fedsim.export.onnx_cache import kept_graphs

    exporter = exporter_of(model)

    def graphs() -> dict[str, Skeleton]:
        switch = switch_of(model)
        weights = switch.full_weights()
        values = [weights[layer.name].numpy() for layer in model.layers]
        switch.install(weights, leftovers, {})
        try:
            found: dict[str, Skeleton] = exporter.trace(model, values)
        finally:
            switch.restore()
        check_found(model.layers, values, list(found.values()))
        return found

    whole = cache(partial(exporter.files, model, None))

    def others(rows: Rows | None, language: str | None) -> Mapping[str, str]:
        return whole(language) if rows is None else exporter.files(model, rows, language)

    @cache
    def longest(count: int, public: bytes) -> int:
        bound: int = exporter.most_bytes(model, count, np.frombuffer(public, bool))
        return bound

    def others_bytes(rows: Rows | None) -> int:
        if rows is None or rows.public is None:
            return _text_bytes(others(rows, None)) + _LANGUAGE_ROOM
        return longest(rows.count, rows.public.tobytes()) + _LANGUAGE_ROOM

    return Traced(kept_graphs(model, leftovers, graphs), others, others_bytes)


def exporter_of(model: SpeechModel, to: str = "onnx") -> Any:
    """Return the module that traces a model for the format `to`; raises `FedsimError` if none
    does."""
    from fedsim.export import ctc, whisper

    for exporter in (ctc, whisper):
        if exporter.is_exportable(model):
            return exporter
    raise FedsimError(
        f"model {model.id!r} is a {type(model.module).__name__}, and only CTC recognizers of raw"
        f" audio (wav2vec 2.0 and its relatives) and Whisper can be exported to {to}"
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

    texts = traced.others(rows, language)
    spare = traced.others_bytes(rows) - _text_bytes(texts)
    for name, bare in traced.graphs.items():
        filled = fill(bare, weights, spare)
        onnx.checker.check_model(filled)
        (folder / name).write_bytes(filled.SerializeToString())
        spare = 0
    for name, text in texts.items():
        write_text(folder / name, text)
