"""Clips of several clients in shared forward passes of one model (`fedsim.quant.shared`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch

from fedsim.quant.calibrators import needs, on_user_data
from fedsim.quant.model import Batch, device_of
from fedsim.quant.onepass import Passed
from fedsim.quant.sensitivity import Sensed, Sensing
from fedsim.quant.shared import shared_batches, shared_pass
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.fitting import fitted_together
from fedsim.speech.models.base import (
    Hypothesis,
    SpeechModel,
    own_tokens,
    recognize_clips,
    tuning_batches,
)
from fedsim.speech.tuning import TuningPass

T = TypeVar("T")
COARSE = {"grain": SAMPLE_RATE, "token_grain": 16}
"""Padded batches on a GPU are a multiple of this many samples and tokens long: of many clients'
batches more have one shape then."""


@dataclass(frozen=True, eq=False)
class Clips:
    """Some clips of one client (1-D float32 at 16 kHz), their language and, for a model that needs
    them, the tokens of its own transcripts."""

    clips: Sequence[np.ndarray]
    language: str | None = None
    tokens: Sequence[torch.Tensor] | None = None


def joins(model: SpeechModel) -> bool:
    """Return whether batches of different clients are computed as one: on a GPU. A processor would
    gain nothing, and last digits would depend on the neighbours."""
    return device_of(model).type != "cpu"


def _with_few_shapes(model: SpeechModel) -> SpeechModel:
    """Return a model such that batches of different clients often have one shape."""
    known: Any = model
    named = {field.name for field in fields(known)}
    return replace(known, **{name: size for name, size in COARSE.items() if name in named})


def sense_together(
    model: SpeechModel,
    clients: Sequence[Clips],
    sensing: Sensing,
    calibrations: Iterable[str],
    *,
    moments: bool = False,
    joined: bool,
) -> list[Passed[Sensed]]:
    """Return for each client what `TuningPass.sense` returns for its tuning clips; here and below,
    up to last digits where batches are `joined`."""
    if not joined:
        passes = [TuningPass(model, c.clips, c.tokens, c.language) for c in clients]
        return [one.sense(sensing.run, calibrations, moments=moments) for one in passes]
    wanted = needs(on_user_data(calibrations))

    def run(model: SpeechModel, clients: Sequence[Clips]) -> list[Passed[Sensed]]:
        passing = [tuning_batches(model, c.clips, c.tokens, c.language) for c in clients]
        return shared_pass(model, passing, sensing, wanted, moments=moments)

    return fitted_together(_with_few_shapes(model), clients, run)


def tokens_together(
    model: SpeechModel, clients: Sequence[Clips], *, joined: bool
) -> list[Sequence[torch.Tensor] | None]:
    """Return for each client what `speech.models.base.own_tokens` would return for its clips."""
    if not (joined and model.needs_tokens):
        return [own_tokens(model, client.clips, client.language) for client in clients]
    with torch.no_grad():  # as `own_tokens` does
        return [*_answers(model, clients, model.own_tokens)]


def recognize_together(
    model: SpeechModel, clients: Sequence[Clips], *, joined: bool
) -> list[list[Hypothesis]]:
    """Return for each client what `speech.models.base.recognize_clips` would return."""
    if not joined:
        return [recognize_clips(model, client.clips, client.language) for client in clients]
    with torch.inference_mode():
        return _answers(model, clients, model.transcribe)


def _answers(
    model: SpeechModel, clients: Sequence[Clips], answer: Callable[[Batch], list[T]]
) -> list[list[T]]:
    """Return what `answer` returns for each clip of each client."""

    def run(model: SpeechModel, clients: Sequence[Clips]) -> list[list[T]]:
        found: list[dict[int, T]] = [{} for _ in clients]
        places: list[list[list[int]]] = [[] for _ in clients]  # of batches that are under way

        def batches(client: int) -> Iterator[Batch]:
            own = clients[client]
            for batch, clips in model.batches(own.clips, own.language):
                places[client].append(clips)
                yield batch

        for shared in shared_batches([batches(i) for i in range(len(clients))]):
            answers = iter(answer(shared.batch))
            for client, _ in shared.parts:
                found[client] |= zip(places[client].pop(0), answers, strict=False)
        return [[own[i] for i in range(len(own))] for own in found]

    return fitted_together(_with_few_shapes(model), clients, run)
