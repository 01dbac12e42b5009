"""Reading clips as mono float32 at 16 kHz, with an error that says what is wrong with one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.base.files import is_lfs_pointer, require_regular
from fedsim.errors import AudioError, FedsimError
from fedsim.speech.containers import require_decoded, require_whole

SAMPLE_RATE = 16_000
"""Hz. Every clip, everywhere, is mono float32 at this rate."""

MIN_SECONDS = 0.1
"""A shorter clip holds no word; one below 0.025 s gives not even one frame."""

MAX_SECONDS = 3_600
"""A longer file is no utterance."""
MIN_RATE, MAX_RATE = 4_000, 192_000
"""Hz, between which recordings of speech are made; at other rates a header is wrong."""
MAX_CHANNELS = 64
MAX_LEVEL = 2.0**31
"""Largest magnitude of a sample: that of 32-bit integers. Above, squares overflow in a model."""
AUDIO_SUFFIXES = frozenset(
    (".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".aif", ".aiff", ".au", ".caf", ".w64")
)
"""Endings of files that are recordings."""
_BLOCK = 1 << 20
OVERSHOOT = 0.1
"""Seconds by which a clip may end after its file."""


def read_clip(
    source: Path | bytes,
    name: str,
    *,
    convert: bool = False,
    begin: float = 0.0,
    end: float | None = None,
) -> np.ndarray:
    """Return the clip in a file or in its bytes as float32 (samples,) at 16 kHz.

    Args:
        source: the file, or its content.
        name: what an error calls the clip.
        convert: mix channels down and resample other rates.
        begin: seconds at which the clip begins; only the clip is read.
        end: seconds at which it ends; None for the end of the file. A file may be shorter by
            `OVERSHOOT`, since tables round.

    Raises:
        AudioError: if the clip is missing, no regular file, unreadable, cut off, empty, too short,
            longer than an hour, not finite, far too loud, or at a rate outside 4 to 192 kHz; if it
            is not within the file; without `convert`, also if it has several channels or another
            rate than 16 kHz.
    """
    samples, rate = _decoded(source, name, begin, end)
    if samples.shape[1] != 1:
        if not convert:
            raise AudioError(
                f"audio file {name} has {samples.shape[1]} channels; mix it down to one, or set "
                f"corpus.convert: true"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
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
    return clip_header(source).seconds


@dataclass(frozen=True)
class ClipHeader:
    """What the header of an audio file says."""

    frames: int
    rate: int
    """Hz."""
    channels: int
    encoding: tuple[str, str]
    """Container and encoding, as libsndfile names them."""

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.frames / self.rate


def clip_header(source: Path | bytes) -> ClipHeader:
    """Return what the header of a clip says; raises `AudioError` if it cannot be read."""
    with _opened(source, "(its header)") as file:
        encoding = file.format, file.subtype
        return ClipHeader(file.frames, file.samplerate, file.channels, encoding)


def _decoded(
    source: Path | bytes, name: str, begin: float, end: float | None
) -> tuple[np.ndarray, int]:
    """Return the samples of a clip, float32 (frames, channels), and their rate in Hz."""
    with _opened(source, name) as file:
        require_whole(source, name)
        first, wanted = _span(file, name, begin, end)
        if first:
            file.seek(first)
        rate, limit = file.samplerate, int(MAX_SECONDS * file.samplerate)
        if file.channels > MAX_CHANNELS:
            raise AudioError(
                f"audio file {name} has {file.channels:,} channels, more than {MAX_CHANNELS}; mix"
                f" it down to one"
            )
        blocks: list[np.ndarray] = []
        frames = 0
        # In blocks: a header may promise more frames than memory holds, or not know their number.
        while frames <= limit:
            size = _BLOCK if wanted is None else min(_BLOCK, wanted - frames)
            block = file.read(size, dtype="float32", always_2d=True)
            blocks.append(block)
            frames += len(block)
            if len(block) < size or frames == wanted:
                break
        promised = file.frames if wanted is None else first + wanted
        if wanted is None or frames < wanted:
            require_decoded(source, name, first + frames, promised, rate)
        if frames > limit:
            raise AudioError(
                f"audio file {name} lasts more than {MAX_SECONDS:,} s; cut it into utterances"
            )
    return (blocks[0] if len(blocks) == 1 else np.concatenate(blocks)), rate


def _span(file: Any, name: str, begin: float, end: float | None) -> tuple[int, int | None]:
    """Return the first frame of a clip and the number of its frames; None for all that follow."""
    if begin == 0 and end is None:
        return 0, None
    total, rate = file.frames, file.samplerate
    first = round(begin * rate)
    last = total if end is None else round(end * rate)
    if first >= total or last - total > OVERSHOOT * rate:
        until = "" if end is None else f" and ends at {end:g} s"
        raise AudioError(
            f"audio file {name} lasts {total / rate:.3f} s, and a clip begins at {begin:g} s"
            f"{until}; correct its times"
        )
    return first, min(last, total) - first


class _Bytes(io.BytesIO):
    """Bytes in which a damaged header may lead before the beginning: that is the beginning.

    libsndfile reads through a callback, in which an exception is printed and not raised.
    """

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return super().seek(0)


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[Any]:
    """Open a clip; `AudioError` for one that cannot be opened or read, or has an absurd rate."""
    import soundfile

    try:
        if isinstance(source, Path):
            require_regular(source)
        with soundfile.SoundFile(_Bytes(source) if isinstance(source, bytes) else source) as f:
            if not MIN_RATE <= f.samplerate <= MAX_RATE:
                raise AudioError(
                    f"audio file {name} has a rate of {f.samplerate:,} Hz, which no recording has:"
                    f" give it its own, from {MIN_RATE:,} to {MAX_RATE:,} Hz"
                )
            yield f
    except FileNotFoundError:
        raise AudioError(
            f"audio file {name} is missing; check file_name in metadata.csv, or what else names it"
        ) from None
    except AudioError:
        raise
    except FedsimError as error:
        raise AudioError(f"audio file {error}") from None
    except (soundfile.LibsndfileError, OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(source, Path) and is_lfs_pointer(source):
            raise AudioError(
                f"audio file {name} is a pointer of Git LFS, not the clip itself; run git lfs pull"
                f" in its folder"
            ) from error
        raise AudioError(
            f"audio file {name} cannot be read ({_reason(error)}); replace it or remove it from "
            f"the corpus"
        ) from error


def check_clip(clip: np.ndarray, name: str) -> np.ndarray:
    """Return `clip` as contiguous float32 (samples,).

    An array has no rate: it is taken to be at 16 kHz. Raises `AudioError`, with `name`, for a clip
    that is empty, too short, not finite, far too loud, not floats or of several channels.
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
    loudest = float(np.abs(samples).max())
    if loudest > MAX_LEVEL:
        raise AudioError(
            f"{name} has a sample of {loudest:.3g}; scale samples to between -1 and 1, for example"
            f" by their largest magnitude"
        )
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
