"""Checks of what a caller of the library gives, before any work is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedsim.errors import FedsimError, nearest
from fedsim.quant.activations import MAX_ACTIVATION_BITS, MIN_ACTIVATION_BITS
from fedsim.quant.packing import MAX_BITS, MIN_BITS
from fedsim.speech.audio import check_clip
from fedsim.speech.public_model import AUTO


def checked_clips(clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return clips, 1-D float32 at 16 kHz; raises `FedsimError` for any that cannot be used."""
    if isinstance(clips, np.ndarray) and clips.ndim == 1:
        raise FedsimError("clips is one array; give a list of 1-D arrays, such as [clip]")
    if not len(clips):
        raise FedsimError("no clips were given; give at least one, better 10 or more")
    return [check_clip(clip, f"clip {i}") for i, clip in enumerate(clips)]


def check_options(
    budget_mb: float, activation_bits: int | str, bit_depths: Sequence[int]
) -> tuple[int, ...]:
    """Return the legal bit depths, ascending; raises `FedsimError` for an option out of range."""
    if not (np.isfinite(budget_mb) and budget_mb > 0):
        raise FedsimError(f"budget_mb is {budget_mb}: give a positive number of MB (2^20 bytes)")
    if isinstance(activation_bits, str):
        fits = activation_bits == AUTO
    else:
        fits = MIN_ACTIVATION_BITS <= activation_bits <= MAX_ACTIVATION_BITS
    if not fits:
        raise FedsimError(
            f"activation_bits is {activation_bits!r}: use {MIN_ACTIVATION_BITS} to "
            f"{MAX_ACTIVATION_BITS}, or {AUTO!r}"
        )
    depths = tuple(sorted(set(bit_depths)))
    whole = all(depth == int(depth) for depth in depths)
    if not depths or not whole or depths[0] < MIN_BITS or depths[-1] > MAX_BITS:
        raise FedsimError(
            f"bit_depths is {list(bit_depths)}: use whole depths from {MIN_BITS} to {MAX_BITS}"
        )
    return depths


def check_words(choices: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """Raise `FedsimError` for an option, name -> (value, legal values), with another value."""
    for name, (value, legal) in choices.items():
        if value not in legal:
            raise FedsimError(f"{name} is {value!r}: {nearest(str(value), legal)}")


def check_share(name: str, value: float) -> None:
    """Raise `FedsimError` unless a number lies between 0 and 1."""
    if not 0 < value < 1:
        raise FedsimError(f"{name} is {value}: give a number above 0 and below 1")
