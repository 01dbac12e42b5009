"""Whisper in ONNX: an encoder, and a decoder that remembers keys and values.

Names of files, inputs and outputs are those of a merged export of optimum, which onnx-asr (model
type `whisper`), optimum and transformers.js load. There the decoder holds two graphs, with and
without past keys and values, in the branches of an `If`. onnxruntime 1.32 refuses packed weights
that branches share, and a copy for each of them would double the file. Here it is one graph:
`use_cache_branch` cuts either the past or the encoder's hidden states to none, so no weight lies in
a branch. What comes out is the same: with the cache the keys and values of hidden states are of no
clips, and the loaders keep those that they have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.errors import FedsimError
from fedsim.export import whisper_graph
from fedsim.export.onnx_graph import Skeleton, WeightTensor, skeleton_of
from fedsim.export.run_whisper import DECODER, ENCODER, loaded
from fedsim.export.whisper_files import files
from fedsim.export.whisper_tokens import most_bytes

if TYPE_CHECKING:
    from fedsim.speech.models.base import SpeechModel

__all__ = ["DECODER", "ENCODER", "files", "is_exportable", "most_bytes", "recognizer", "trace"]


def is_exportable(model: SpeechModel) -> bool:
    """Return whether a model is a Whisper that transcribes."""
    return type(model.module).__name__ == "WhisperForConditionalGeneration"


def trace(model: SpeechModel, weights: Sequence[np.ndarray]) -> dict[str, Skeleton]:
    """Return encoder and decoder by the names of their files.

    Raises `FedsimError` if they have another activation than GELU.
    """
    network: Any = model.module
    if (activation := network.config.activation_function) != "gelu":
        raise FedsimError(
            f"model {model.id!r} cannot be exported: its activation is {activation!r}, and only"
            f" gelu is exported"
        )
    return {
        ENCODER: _skeleton(model, whisper_graph.encoder),
        DECODER: _skeleton(model, whisper_graph.decoder),
    }


def recognizer(
    folder: Path, session: Callable[[str], Any]
) -> Callable[[np.ndarray], tuple[str, bool]]:
    """Return what recognizes a clip (1-D float32, 16 kHz) with an exported model: its transcript,
    and whether it looped. `session` opens a graph of the folder by its name."""
    return loaded(folder, session).recognize


def _skeleton(
    model: SpeechModel, write: Callable[[whisper_graph.Graph], tuple[list[Any], list[Any]]]
) -> Skeleton:
    from onnx import helper

    numbers = {f"{layer.name}.weight": i for i, layer in enumerate(model.layers)}
    graph = whisper_graph.Graph(model.module, [layer.name for layer in model.layers])
    inputs, outputs = write(graph)
    made = helper.make_graph(graph.nodes, "fedsim", inputs, outputs, [*graph.constants.values()])
    opset = [helper.make_opsetid("", whisper_graph.OPSET)]
    whole = helper.make_model(made, opset_imports=opset, ir_version=whisper_graph.IR)
    weights = {
        name: WeightTensor(numbers[name], shape, False) for name, shape in graph.used.items()
    }
    return skeleton_of(whole, weights)
