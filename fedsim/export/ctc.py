"""CTC recognizers in ONNX: raw audio in, log probabilities out.

The layout is that of onnx-asr's model type `wav2vec2-ctc`: `model.onnx` with the inputs
`input_values` (B, T) float32 and `input_lengths` (B,) int64 and the output `logprobs` (B, F, V),
`vocab.txt` and `config.json`. Normalization of each clip is part of the graph.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from fedsim.errors import FedsimError
from fedsim.export.onnx_graph import OPSET, Skeleton, skeleton

if TYPE_CHECKING:
    from fedsim.quant.rows import Rows
    from fedsim.speech.models.base import SpeechModel

GRAPH = "model.onnx"
_NORMALIZED_BY = 1e-7
"""Added to the variance of a clip, as the feature extractor does."""
_SPACE = "\u2581"


class Recognizer(nn.Module):
    """A network behind its feature extractor, with log probabilities."""

    def __init__(self, network: nn.Module, *, normalize: bool, masked: bool) -> None:
        super().__init__()
        self.network = network
        self.normalize = normalize
        self.masked = masked

    def forward(self, input_values: torch.Tensor, input_lengths: torch.Tensor) -> torch.Tensor:
        """Return log probabilities (B, F, V) of clips (B, T), padded behind `input_lengths`."""
        there = torch.arange(input_values.shape[1])[None, :] < input_lengths[:, None]
        clips = input_values
        if self.normalize:
            n = input_lengths[:, None].to(clips.dtype)
            mean = torch.where(there, clips, 0.0).sum(1, keepdim=True) / n
            centred = torch.where(there, clips - mean, 0.0)
            variance = (centred * centred).sum(1, keepdim=True) / n
            clips = centred / torch.sqrt(variance + _NORMALIZED_BY)
        mask = there.long() if self.masked else None
        return torch.log_softmax(self.network(clips, attention_mask=mask).logits, dim=-1)


def is_exportable(model: SpeechModel) -> bool:
    """Return whether a model is a CTC recognizer that takes raw audio."""
    names = getattr(model.module, "main_input_name", ""), type(model.module).__name__
    return names[0] == "input_values" and names[1].endswith("ForCTC")


def trace(model: SpeechModel, weights: Sequence[np.ndarray]) -> dict[str, Skeleton]:
    """Return the traced network of a recognizer by the name of its file; `weights` are those of
    its layers (N, ...).

    Where padding changes results, a batch has one clip only. Raises `FedsimError` if torch cannot
    trace the network.
    """
    adapter: Any = model
    pads = bool(adapter.pads)
    network, normalize = model.module, bool(adapter.extractor.do_normalize)
    recognizer = Recognizer(network, normalize=normalize, masked=pads).eval()
    # A batch norm would be folded into the convolution before it, whose weight is a layer's.
    folds = any(isinstance(module, nn.BatchNorm1d) for module in network.modules())
    clips = torch.zeros(2 if pads else 1, 16_000)
    lengths = torch.full((len(clips),), 16_000)
    free = torch.export.Dim.DYNAMIC
    batch = {0: free} if pads else {}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                recognizer,
                (clips, lengths),
                dynamo=True,
                verbose=False,
                optimize=not folds,
                opset_version=OPSET,
                input_names=["input_values", "input_lengths"],
                output_names=["logprobs"],
                dynamic_shapes={"input_values": {**batch, 1: free}, "input_lengths": batch},
            )
    except Exception as error:  # torch's exporter raises whatever it meets
        raise FedsimError(
            f"model {model.id!r} cannot be exported: torch cannot trace a"
            f" {type(network).__name__} ({type(error).__name__})"
        ) from error
    assert program is not None
    return {GRAPH: skeleton(program.model_proto, weights)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporter logs and warns of while it traces."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def recognizer(
    folder: Path, session: Callable[[str], Any]
) -> Callable[[np.ndarray], tuple[str, bool]]:
    """Return what recognizes a clip (1-D float32, 16 kHz) with an exported model: its transcript,
    and whether it looped. `session` opens a graph of the folder by its name."""
    from fedsim.export import onnx_run

    transcribe = onnx_run.opened(folder, session)
    return lambda clip: (transcribe(clip), False)


def files(model: SpeechModel, rows: Rows | None, language: str | None) -> dict[str, str]:
    """Return the texts of the files beside the graph, by name; they depend on the model alone."""
    adapter: Any = model
    tokenizer, config = adapter.tokenizer, adapter.module.config
    lines = []
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        names = {config.pad_token_id: "<blk>"}
        if token == tokenizer.word_delimiter_token:
            token = _SPACE
        lines.append(f"{names.get(number, token)} {number}\n")
    factor = math.prod(config.conv_stride)
    about = {"model_type": "wav2vec2-ctc", "subsampling_factor": factor}
    return {"vocab.txt": "".join(lines), "config.json": json.dumps(about, indent=2) + "\n"}


def most_bytes(model: SpeechModel, count: int, public: np.ndarray) -> int:
    """Return the bytes of these files, which depend on no rows."""
    return sum(len(text.encode()) for text in files(model, None, None).values())
