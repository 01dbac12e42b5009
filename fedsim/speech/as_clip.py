"""A clip as Python has it at hand, made what every model takes: mono float32 at 16 kHz."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import AudioError
from fedsim.speech.audio import (
    MAX_CHANNELS,
    MAX_RATE,
    MIN_RATE,
    MIN_SECONDS,
    SAMPLE_RATE,
    check_clip,
    read_clip,
)

FORMS = "a 1-D array at 16 kHz, (samples, rate), a path, or a dict with 'array' and 'sampling_rate'"


def as_clip(clip: Any, name: str) -> np.ndarray:
    """Return a clip as contiguous float32 (samples,) at 16 kHz.

    Other rates are resampled with soxr. Integers are PCM: int16 is divided by 2^15, int32 by 2^31,
    uint8 is centred at 128. Channels are averaged where the rate says that this is audio; an array
    of several rows without a rate may be a batch, and is refused.

    Args:
        clip: a 1-D array, list or torch tensor at 16 kHz, also with one row or column; `(samples,
            rate)`; the path of an audio file; a `datasets` dict with "array" and "sampling_rate",
            or with "bytes" or "path"; a row with such a dict under "audio"; a decoder of torchcodec
            or `datasets` (`get_all_samples`), or its samples.
        name: what an error calls the clip.

    Raises:
        AudioError: for anything else, and for a clip that cannot be used (`check_clip`).
    """
    if isinstance(clip, str | Path):
        return _from_file(clip, name)
    if isinstance(clip, Mapping):
        return _from_mapping(clip, name)
    if hasattr(clip, "get_all_samples"):
        try:
            clip = clip.get_all_samples()
        except Exception as error:  # decoders raise their own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise AudioError(
                f"{name} cannot be decoded ({reason}); replace it, or leave it out"
            ) from error
    if hasattr(clip, "data") and hasattr(clip, "sample_rate"):
        return _at_rate(clip.data, clip.sample_rate, name)
    if isinstance(clip, tuple) and len(clip) == 2 and not _is_number(clip[0]):
        return _at_rate(clip[0], clip[1], name)
    if isinstance(clip, tuple) and len(clip) == 2 and np.ndim(_plain(clip[1], name)):
        raise AudioError(f"{name} is a pair that begins with a number; give (samples, rate)")
    samples = _floats(clip, name)
    if samples.ndim == 2 and 1 in samples.shape:
        samples = samples.reshape(-1)
    return check_clip(samples, name)


def _from_file(path: str | Path, name: str) -> np.ndarray:
    try:
        exists = Path(path).exists()
    except (OSError, ValueError):  # a name that no file can have
        exists = False
    if not exists:
        raise AudioError(f"{name}: the file {str(path)!r} does not exist; check the path")
    return read_clip(Path(path), f"{path} ({name})", convert=True)


def _from_mapping(clip: Mapping[str, Any], name: str) -> np.ndarray:
    if clip.get("array") is not None:
        if clip.get("sampling_rate") is None:
            raise AudioError(f"{name} has an 'array' and no 'sampling_rate'; give both")
        return _at_rate(clip["array"], clip["sampling_rate"], name)
    if isinstance(clip.get("bytes"), bytes):
        return read_clip(clip["bytes"], f"({name})", convert=True)
    if isinstance(clip.get("path"), str | Path):
        return _from_file(clip["path"], name)
    if clip.get("audio") is not None and not _is_number(clip["audio"]):
        return as_clip(clip["audio"], name)
    keys = ", ".join(repr(str(key)) for key in list(clip)[:8])
    raise AudioError(f"{name} is a dict with the keys {keys or '(none)'}; give {FORMS}")


def _at_rate(samples: Any, rate: Any, name: str) -> np.ndarray:
    """Return samples at a rate in Hz, (n,), (channels, n) or (n, channels), as a clip."""
    rate = rate.item() if getattr(rate, "ndim", None) == 0 and hasattr(rate, "item") else rate
    if not _is_number(rate):
        raise AudioError(f"{name} has a {type(rate).__name__} for its rate; give (samples, rate)")
    if not (math.isfinite(rate) and MIN_RATE <= rate <= MAX_RATE):
        raise AudioError(
            f"{name} has a rate of {rate:,} Hz, which no recording has; give (samples, rate), the"
            f" rate from {MIN_RATE:,} to {MAX_RATE:,} Hz"
        )
    clip = _mono(_floats(samples, name), rate, name)
    if rate == SAMPLE_RATE or not clip.size or not np.isfinite(clip).all():
        return check_clip(clip, name)
    import soxr

    return check_clip(soxr.resample(clip.astype(np.float32), float(rate), SAMPLE_RATE), name)


def _mono(samples: np.ndarray, rate: float, name: str) -> np.ndarray:
    """Average the channels: the shorter axis, if the other one is long enough for a clip."""
    if samples.ndim != 2:
        return samples  # one of other dimensions is refused by check_clip
    if 1 in samples.shape:
        return samples.reshape(-1)
    few, many = sorted(samples.shape)
    if few > MAX_CHANNELS or many < max(MIN_SECONDS * rate, 2 * few):
        raise AudioError(
            f"{name} has shape {samples.shape}, of which neither axis is clearly the channels; give"
            f" one channel as a 1-D array"
        )
    axis = 0 if samples.shape[0] == few else 1
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        return samples.astype(np.float32).mean(axis=axis)


def _floats(samples: Any, name: str) -> np.ndarray:
    """Return samples as an array of floats, integers scaled to between -1 and 1."""
    array = _plain(samples, name)
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    if array.dtype in (np.int16, np.int32):
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    if array.dtype.kind not in "fiu":
        raise AudioError(
            f"{name} is a {type(samples).__name__} that holds no samples; give {FORMS}"
        )
    if array.ndim == 0:
        raise AudioError(f"{name} is a number; give {FORMS}, all clips in a list")
    return array


def _plain(samples: Any, name: str) -> np.ndarray:
    """Return anything like an array as a numpy array."""
    try:
        if hasattr(samples, "detach"):  # a tensor of torch, which numpy may not know the type of
            samples = samples.detach().cpu()
            samples = samples.float() if samples.is_floating_point() else samples
            return np.asarray(samples.numpy())
        return np.asarray(samples)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise AudioError(
            f"{name} is a {type(samples).__name__} that holds no samples; give {FORMS}"
        ) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)
