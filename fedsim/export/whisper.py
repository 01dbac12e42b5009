"""Whisper in ONNX: an encoder, and a decoder that remembers keys and values.

Names of files, inputs and outputs are those of a merged export of optimum, which onnx-asr (model
type `whisper`), optimum and transformers.js load. There the decoder holds two graphs, with and
without past keys and values, in the branches of an `If`. Here it is one graph: `use_cache_branch`
cuts either the past or the encoder's hidden states to none, so no weight lies in a branch. What
comes out is the same: with the cache the keys and values of hidden states are of no clips, and the
loaders keep those that they have.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedsim.export import run_whisper
from fedsim.export.tracing import traced
from fedsim.export.whisper_files import files
from fedsim.export.whisper_network import Decoder, Encoder

if TYPE_CHECKING:
    from fedsim.speech.models.base import SpeechModel

__all__ = ["DECODER", "ENCODER", "files", "is_exportable", "recognizer", "trace"]

ENCODER, DECODER = "encoder_model.onnx", "decoder_model_merged.onnx"
_FLOAT, _INT64, _BOOL = 1, 7, 9
"""Of `onnx.TensorProto`."""
_ALL = 2**31 - 1
"""Behind the last element of any axis."""


def is_exportable(model: SpeechModel) -> bool:
    """Return whether a model is a Whisper that transcribes."""
    return type(model.module).__name__ == "WhisperForConditionalGeneration"


def trace(model: SpeechModel) -> dict[str, Any]:
    """Return encoder and decoder, each an `onnx.ModelProto`, by the names of their files.

    Raises `FedsimError` if torch cannot trace them.
    """
    return {ENCODER: _encoder(model), DECODER: _decoder(model)}


def recognizer(
    folder: Path, session: Callable[[str], Any]
) -> Callable[[np.ndarray], tuple[str, bool]]:
    """Return what recognizes a clip (1-D float32, 16 kHz) with an exported model: its transcript,
    and whether it looped. `session` opens a graph of the folder by its name."""
    return run_whisper.loaded(folder, session).recognize


def _encoder(model: SpeechModel) -> Any:
    from onnx import helper

    network: Any = model.module
    mels, frames = network.config.num_mel_bins, 2 * network.config.max_source_positions
    made = traced(
        Encoder(network),
        (torch.zeros(2, mels, frames),),
        (["input_features"], ["last_hidden_state"]),
        {"input_features": {0: torch.export.Dim("batch")}},
        model=model.id,
    )
    # Loaders may fill up to 30 s, whatever the window: what lies behind it is cut.
    cut = _Border()
    cut.slice("input_features", "window", 2, to=cut.integers("frames", frames))
    inputs = [helper.make_tensor_value_info("input_features", _FLOAT, ["batch", mels, "frames"])]
    return _framed(made, {"input_features": "window"}, inputs, list(made.graph.output), cut, None)


def _decoder(model: SpeechModel) -> Any:
    from onnx import helper

    network: Any = model.module
    config = network.config
    n, heads, d = config.decoder_layers, config.decoder_attention_heads, config.d_model
    size = d // heads
    batch, tokens, frames, past, known = map(
        torch.export.Dim, ("batch", "tokens", "frames", "past", "known")
    )
    free, example = [], []
    for name in _names("past_key_values", n):
        own = ".decoder." in name
        free.append({0: batch, 2: past if own else known})
        example.append(torch.zeros(2, heads, 4 if own else 5, size))
    olds, news = _names("past_key_values", n), _names("present", n)
    made = traced(
        Decoder(network),
        (torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 6, d), torch.zeros(1), example),
        (["input_ids", "encoder_hidden_states", "unseen", *olds], ["logits", *news]),
        {
            "input_ids": {0: batch, 1: tokens},
            "encoder_hidden_states": {0: batch, 1: frames},
            "unseen": {},
            "past": free,
        },
        model=model.id,
    )
    before, after, renamed = _Border(), _Border(), {}
    _switch(before)
    for name in ("encoder_hidden_states", *olds):
        renamed[name] = f"{name}.used"
    before.slice("encoder_hidden_states", renamed["encoder_hidden_states"], 1, to="if_new")
    before.add("Shape", ["input_ids"], "batch", end=1)
    before.add("Concat", ["batch", before.integers("heads", heads, -1, size)], "shape", axis=0)
    for name in olds:  # before there is a past, some loaders give one of no clips, some zeros
        if ".decoder." in name:
            before.add("Reshape", [name, "shape"], f"{name}.clips")
            before.slice(f"{name}.clips", renamed[name], 2, to="if_cached")
        else:
            before.add("Reshape", [name, "shape"], renamed[name])
    inputs = [
        helper.make_tensor_value_info("input_ids", _INT64, ["batch", "tokens"]),
        helper.make_tensor_value_info("encoder_hidden_states", _FLOAT, ["batch", "frames", d]),
    ]
    outputs = [helper.make_tensor_value_info("logits", _FLOAT, ["batch", "tokens", "vocabulary"])]
    for old, new in zip(olds, news, strict=True):
        own = ".decoder." in old
        shape = ["batch_past", heads, "past" if own else "known", size]
        inputs.append(helper.make_tensor_value_info(old, _FLOAT, shape))
        shape = ["batch", heads, "past_and_tokens", size] if own else ["new", heads, "frames", size]
        outputs.append(helper.make_tensor_value_info(new, _FLOAT, shape))
        if not own:
            renamed[new] = f"{new}.all"
            after.slice(renamed[new], new, 0, to="if_new")
    inputs.append(helper.make_tensor_value_info("use_cache_branch", _BOOL, [1]))
    return _framed(made, renamed, inputs, outputs, before, after)


def _names(what: str, blocks: int) -> list[str]:
    """Return the names of keys and values of all blocks, in the order that loaders expect."""
    return [
        f"{what}.{i}.{side}.{part}"
        for i in range(blocks)
        for side in ("decoder", "encoder")
        for part in ("key", "value")
    ]


class _Border:
    """Nodes at the inputs or the outputs of a graph, and their constants."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def integers(self, name: str, *values: int) -> str:
        """Add integers (len(values),); return their name."""
        from onnx import helper

        if all(one.name != name for one in self.initializers):
            made = helper.make_tensor(name, _INT64, (len(values),), values)
            self.initializers.append(made)
        return name

    def slice(self, source: str, target: str, axis: int, *, to: str) -> None:
        """Add the cut of a tensor's axis behind the first `to` elements."""
        ends = [self.integers("zero", 0), to, self.integers(f"axis{axis}", axis)]
        self.add("Slice", [source, *ends], target)


def _switch(border: _Border) -> None:
    """Add the numbers that depend on whether the past is used: how much of it is read, how much of
    the encoder's hidden states, and what is added to scores of frames of the past."""
    from onnx import helper

    border.add("Cast", ["use_cache_branch"], "cached", to=_INT64)
    border.add("Mul", ["cached", border.integers("all", _ALL)], "if_cached")
    border.add("Sub", ["all", "if_cached"], "if_new")
    for name, value in (("seen_score", 0.0), ("unseen_score", float("-inf"))):
        border.initializers.append(helper.make_tensor(name, _FLOAT, (1,), [value]))
    border.add("Where", ["use_cache_branch", "seen_score", "unseen_score"], "unseen")


def _framed(
    made: Any,
    renamed: dict[str, str],
    inputs: list[Any],
    outputs: list[Any],
    before: _Border,
    after: _Border | None,
) -> Any:
    """Return a graph with other inputs and outputs, and what lies between them and its own, which
    are renamed."""
    from onnx import helper

    for node in made.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = renamed.get(name, name)
    borders = [before] if after is None else [before, after]
    constants = {one.name: one for border in borders for one in border.initializers}
    graph = helper.make_graph(
        [*before.nodes, *made.graph.node, *(after.nodes if after else ())],
        made.graph.name,
        inputs,
        outputs,
        [*made.graph.initializer, *constants.values()],
    )
    return helper.make_model(graph, opset_imports=made.opset_import, ir_version=made.ir_version)
