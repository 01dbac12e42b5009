"""Checks of what a caller of the library gives, before any work is done."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsim.errors import FedsimError, nearest
from fedsim.quant.activations import MAX_ACTIVATION_BITS, MIN_ACTIVATION_BITS
from fedsim.quant.formats import OWN, depths_of
from fedsim.speech.as_clip import as_clip
from fedsim.speech.public_model import AUTO


def checked_clips(clips: Sequence[Any]) -> list[np.ndarray]:
    """Return clips, in any of the forms of `as_clip`, as 1-D float32 at 16 kHz.

    Raises `FedsimError` for any that cannot be used, with its number from 0.
    """
    if isinstance(clips, np.ndarray) and clips.ndim == 1 and clips.dtype != object:
        raise FedsimError("clips is one array; give a list of 1-D arrays, such as [clip]")
    if isinstance(clips, str | bytes | os.PathLike | Mapping) or hasattr(clips, "get_all_samples"):
        raise FedsimError(f"clips is one {type(clips).__name__}; give a list, such as [clip]")
    try:
        given = list(clips)
    except TypeError:
        raise FedsimError(
            f"clips is a {type(clips).__name__}; give a list of clips, such as [clip]"
        ) from None
    if isinstance(clips, tuple) and len(given) == 2 and isinstance(given[1], int | float):
        raise FedsimError("clips is one pair (samples, rate); give a list of them, such as [clip]")
    if not given:
        raise FedsimError("no clips were given; give at least one, better 10 or more")
    return [as_clip(clip, f"clip {i}") for i, clip in enumerate(given)]


def check_options(
    budget_mb: float, activation_bits: int | str, bit_depths: Sequence[int] | None, format: str
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
    legal = depths_of(format)
    if bit_depths is None:
        return legal
    depths = tuple(sorted(set(bit_depths)))
    if not depths or not set(depths) <= set(legal):
        listed = f"{legal[0]} to {legal[-1]}" if format == OWN else ", ".join(map(str, legal))
        raise FedsimError(f"bit_depths is {list(bit_depths)}: use whole depths of {listed}")
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
