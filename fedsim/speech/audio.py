"""Reading clips as mono float32 at 16 kHz, with an error that says what is wrong with one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from fedsim.errors import AudioError

SAMPLE_RATE = 16_000
"""Hz. Every clip, everywhere, is mono float32 at this rate."""

MIN_SECONDS = 0.1
"""A shorter clip holds no word; one below 0.025 s gives not even one frame."""


def read_clip(source: Path | bytes, name: str, *, convert: bool = False) -> np.ndarray:
    """Return the clip in a file or in its bytes as float32 (samples,) at 16 kHz.

    Args:
        source: the file, or its content.
        name: what an error calls the clip.
        convert: mix channels down and resample other rates.

    Raises:
        AudioError: if the clip is missing, unreadable, empty, too short or not finite; without
            `convert`, also if it has several channels or another rate.
    """
    import soundfile

    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        if isinstance(source, Path) and not source.is_file():
            raise AudioError(f"audio file {name} is missing; check file_name in metadata.csv")
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise AudioError(
            f"audio file {name} cannot be read ({_reason(error)}); replace it or remove it from "
            f"the corpus"
        ) from error
    if samples.shape[1] != 1:
        if not convert:
            raise AudioError(
                f"audio file {name} has {samples.shape[1]} channels; mix it down to one, or set "
                f"corpus.convert: true"
            )
        samples = samples.mean(axis=1, keepdims=True)
    clip = samples[:, 0]
    if rate != SAMPLE_RATE:
        if not convert:
            raise AudioError(
                f"audio file {name} has a rate of {rate:,} Hz; resample it to {SAMPLE_RATE:,} Hz, "
                f"or set corpus.convert: true"
            )
        import soxr

        clip = soxr.resample(clip, rate, SAMPLE_RATE)
    return check_clip(clip, f"audio file {name}")


def clip_seconds(source: Path | bytes) -> float:
    """Return the length of a clip in seconds, from its header.

    Raises `AudioError` if it cannot be read.
    """
    import soundfile

    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        return float(soundfile.info(file).duration)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise AudioError(
            f"the header of a clip cannot be read ({_reason(error)}); replace the file"
        ) from error


def check_clip(clip: np.ndarray, name: str) -> np.ndarray:
    """Return `clip` as contiguous float32 (samples,).

    An array has no rate: it is taken to be at 16 kHz. Raises `AudioError`, with `name`, for a clip
    that is empty, too short, not finite, not floats or of several channels.
    """
    samples = np.asarray(clip)
    if samples.ndim != 1:
        raise AudioError(
            f"{name} has shape {samples.shape}; give one channel as a 1-D array, for example "
            f"clip.mean(axis=0)"
        )
    if samples.size == 0:
        raise AudioError(f"{name} is empty; leave it out")
    if not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(
            f"{name} has samples of type {samples.dtype}; give floats between -1 and 1, for "
            f"example clip.astype('float32') / 32768"
        )
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).sum())
        raise AudioError(f"{name} holds {bad} samples that are NaN or infinite; leave it out")
    if samples.size < MIN_SECONDS * SAMPLE_RATE:
        raise AudioError(
            f"{name} lasts {samples.size / SAMPLE_RATE:.3g} s; the shortest usable clip is "
            f"{MIN_SECONDS:g} s ({int(MIN_SECONDS * SAMPLE_RATE):,} samples at 16 kHz)"
        )
    return np.ascontiguousarray(samples, dtype=np.float32)


def _reason(error: Exception) -> str:
    """Return the cause without a file name: of bytes in memory it would be an address."""
    text = str(getattr(error, "error_string", "") or error or type(error).__name__)
    return " ".join(text.split()).rstrip(".")
