"""The interface of every speech model, and what its adapters share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from fedsim.base.ahead import ahead
from fedsim.quant.layers import Layer
from fedsim.quant.model import Batch
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.fitting import fitted


@dataclass(frozen=True)
class Hypothesis:
    """What a model recognized in a clip: a transcript, or the name of a class."""

    text: str
    looped: bool = False
    """Whether decoding was stopped because it repeated itself (`fedsim.speech.repetition`)."""


class SpeechModel(Protocol):
    """A pretrained network with its processor; satisfies `fedsim.quant.model.Quantizable`.

    Adapters have no state besides the network, so one serves all clients in turn.
    """

    id: str
    """Hub id or folder from which it was loaded."""
    task: str
    """"transcribe" (scored by WER and CER) or "classify" (scored by accuracy)."""
    module: nn.Module
    layers: tuple[Layer, ...]
    batch_size: int
    """Clips in one forward pass, at most."""
    settings: Mapping[str, Any]
    """`window_s` and `keep` with which it was loaded: a model file keeps them, for its loader."""
    needs_tokens: bool
    """Whether a forward pass needs tokens beside the audio (seq2seq); only such a model loops."""

    def batches(
        self, clips: Sequence[np.ndarray], language: str | None = None
    ) -> Iterator[tuple[Batch, list[int]]]:
        """Yield batches of `clips` (1-D float32, 16 kHz), with the index of each clip in `clips`.

        Grouping depends on the clips only, and padding never changes a result.
        """

    def own_tokens(self, batch: Batch) -> list[torch.Tensor]:
        """Return the tokens of the model's own transcript of each clip, if it `needs_tokens`."""

    def with_tokens(self, batch: Batch, tokens: Sequence[torch.Tensor]) -> Batch:
        """Return the batch with these tokens, ready for a teacher-forced pass."""

    def forward(self, batch: Batch) -> torch.Tensor:
        """Run the network once; return its logits (a seq2seq model needs a batch with tokens)."""

    def answers(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits (P, V) at the positions that make up the output: frames of a CTC model,
        tokens of a seq2seq model's own transcript, clips of a classifier."""

    def loss(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Return the loss of `logits` against the model's own transcript, summed over clips."""

    def transcribe(self, batch: Batch) -> list[Hypothesis]:
        """Return one hypothesis per clip."""


def recognize_clips(
    model: SpeechModel, clips: Sequence[np.ndarray], language: str | None = None
) -> list[Hypothesis]:
    """Return one hypothesis per clip, in the order of `clips`."""

    def recognize(model: SpeechModel) -> list[Hypothesis]:
        hypotheses: list[Hypothesis | None] = [None] * len(clips)
        with torch.inference_mode():
            for batch, places in model.batches(clips, language):
                for place, hypothesis in zip(places, model.transcribe(batch), strict=True):
                    hypotheses[place] = hypothesis
        return hypotheses  # type: ignore[return-value]

    return fitted(model, recognize)


def transcribe_clips(
    model: SpeechModel, clips: Sequence[np.ndarray], language: str | None = None
) -> list[str]:
    """Return the text of one hypothesis per clip, in the order of `clips`."""
    return [hypothesis.text for hypothesis in recognize_clips(model, clips, language)]


def own_tokens(
    model: SpeechModel, clips: Sequence[np.ndarray], language: str | None = None
) -> list[torch.Tensor] | None:
    """Return the tokens of the model's own transcript of each clip; None if it needs none."""
    if not model.needs_tokens:
        return None

    def decode(model: SpeechModel) -> list[torch.Tensor]:
        tokens: list[torch.Tensor | None] = [None] * len(clips)
        with torch.no_grad():  # not inference mode: the Fisher differentiates through their users
            for batch, places in model.batches(clips, language):
                for place, row in zip(places, model.own_tokens(batch), strict=True):
                    tokens[place] = row
        return tokens  # type: ignore[return-value]

    return fitted(model, decode)


def tuning_batches(
    model: SpeechModel,
    clips: Sequence[np.ndarray],
    tokens: Sequence[torch.Tensor] | None,
    language: str | None = None,
) -> Iterator[Batch]:
    """Yield batches of `clips` for a forward pass, with `tokens` from `own_tokens`."""
    ready = (
        batch if tokens is None else model.with_tokens(batch, [tokens[i] for i in places])
        for batch, places in model.batches(clips, language)
    )
    first, second = next(ready, None), next(ready, None)
    if first is not None:
        yield replace(first, alone=second is None)
    if second is not None:
        yield second
        yield from ready


def placed(network: nn.Module, batch: Batch) -> Batch:
    """Return a batch whose inputs are where the network computes, and floats of its type.

    How many frames count stays on the processor: it is read as numbers.
    """
    weight = next(network.parameters(), None)
    if weight is None:
        return batch
    device, kind = weight.device, weight.dtype

    def there(x: torch.Tensor) -> torch.Tensor:
        return x.to(device, kind if x.is_floating_point() else None)

    return replace(batch, inputs={name: there(x) for name, x in batch.inputs.items()})


def placed_batches(
    network: nn.Module, groups: Iterable[list[int]], encode: Callable[[list[int]], Batch]
) -> Iterator[tuple[Batch, list[int]]]:
    """Yield the batch of each group of clips where the network computes, and the group.

    For a network on a GPU, features are made in a thread ahead of it. They are placed only when
    asked for: whether a batch fits the GPU's memory must not depend on how far ahead the thread is.
    On the processor no thread takes cores from the computation.

    Args:
        network: what the batches are for.
        groups: indices of clips, as `by_length` yields them.
        encode: indices -> their features, on the processor; safe in another thread.
    """
    made = ((encode(places), places) for places in groups)
    weight = next(network.parameters(), None)
    on_processor = weight is None or weight.device.type == "cpu"
    for batch, places in made if on_processor else ahead(made):
        yield placed(network, batch), places


def padded(length: int, grain: int) -> int:
    """Return the smallest multiple of `grain` that is at least `length`."""
    return -(-length // grain) * grain


def by_length(clips: Sequence[np.ndarray], size: int, *, exact: bool) -> Iterator[list[int]]:
    """Yield the indices of clips sorted by length, in batches of at most `size`.

    With `exact` a batch has clips of one length only, so nothing is padded.
    """
    order = sorted(range(len(clips)), key=lambda i: (len(clips[i]), i))
    group: list[int] = []
    for place in order:
        differs = exact and group and len(clips[place]) != len(clips[group[0]])
        if group and (len(group) == size or differs):
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def public_signal(seconds: float = 2.0, n: int = 4) -> list[np.ndarray]:
    """Return a public signal that stands in for speech where no user data may be used.

    `n` clips of noise with the long-term spectrum of speech (flat to 500 Hz, then falling by 9 dB
    per octave) and a 4 Hz syllable rhythm, at -23 dBFS; seeded, so it is the same everywhere.
    """
    rng = np.random.default_rng(20230820)
    size = int(seconds * SAMPLE_RATE)
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    slope = np.minimum(1.0, (np.maximum(frequency, 1.0) / 500.0) ** -1.5) * (frequency > 80)
    rhythm = 0.5 - 0.5 * np.cos(2 * np.pi * 4.0 * np.arange(size) / SAMPLE_RATE)
    clips = []
    for _ in range(n):
        noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(size)) * slope, size) * rhythm
        noise *= 10 ** (-23 / 20) / np.sqrt(np.mean(noise**2))
        clips.append(np.clip(noise, -1, 1).astype(np.float32))
    return clips
