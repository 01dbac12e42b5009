"""Passes in batches that fit a GPU's memory: halved where one does not fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import torch

from fedsim.errors import FedsimError

C = TypeVar("C")
T = TypeVar("T")
_LOG = logging.getLogger("fedsim.gpu")


def fitted(model: Any, run: Callable[[Any], T]) -> T:
    """Return `run(model)`; where the GPU's memory is too small for that, of the same model with
    half as many clips in a batch, and so on.

    Each pass begins with the model's own batches, so that a result depends on its clips and the
    GPU, and not on what ran before. That a batch was halved is logged once per process.

    Args:
        model: a speech model (`fedsim.speech.models.base.SpeechModel`).
        run: makes batches by the model that it is given and runs it on them; called again from the
            start.

    Raises:
        FedsimError: if one clip alone does not fit.
    """
    while True:
        try:
            return run(model)
        except torch.OutOfMemoryError as error:
            if model.batch_size == 1:
                raise FedsimError(
                    "a single clip does not fit the GPU's memory beside the model; leave out long"
                    " clips (corpus.max_seconds), set model.dtype to float16 or bfloat16, or"
                    " choose another device"
                ) from error
        # Only now: while the error is handled, its traceback holds the tensors of the pass.
        _give_back()
        _warn(f"{model.batch_size} clips", "model.batch_size")
        model = replace(model, batch_size=model.batch_size // 2)


def fitted_together(
    model: Any, clients: Sequence[C], run: Callable[[Any, Sequence[C]], list[T]]
) -> list[T]:
    """Return `run(model, clients)`, one result for each client; where the GPU's memory is too small
    for that, of half as many clients at a time, and so on, and then as `fitted` does.

    Every group begins whole, so that a result depends on the group and the GPU alone.
    """
    if len(clients) == 1:
        return fitted(model, lambda model: run(model, clients))
    try:
        return run(model, clients)
    except torch.OutOfMemoryError:
        pass
    _give_back()
    _warn(f"the clips of {len(clients)} clients", "engine.clients_per_batch")
    half = len(clients) // 2
    first = fitted_together(model, clients[:half], run)
    return first + fitted_together(model, clients[half:], run)


def _give_back() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@cache
def _warn(what: str, setting: str) -> None:
    _LOG.warning(
        "%s do not fit the GPU's memory together: such batches are halved; a smaller %s spares the"
        " attempt",
        what,
        setting,
    )
