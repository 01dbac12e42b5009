"""Clips that belong to no client, as server and devices share them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedsim.errors import FedsimError
from fedsim.speech.audio import SAMPLE_RATE

_FULL_SCALE = 32_768
_MAX_LANGUAGE = 64
"""Characters of the name of a language."""


@dataclass(frozen=True, eq=False)
class PublicClip:
    """One clip, float32 (samples,) at 16 kHz, and the language spoken in it if it is known."""

    clip: np.ndarray
    language: str | None


@dataclass(frozen=True, eq=False)
class PublicSet:
    """Public clips on the 16-bit grid, so that they are the same wherever they are read."""

    clips: tuple[PublicClip, ...]

    @cached_property
    def key(self) -> str:
        """SHA-256 of all samples and languages, 64 hexadecimal digits."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def within(self, seconds: float) -> PublicSet:
        """Return the clips cut to so many seconds, which may be all that a model hears."""
        if all(len(public.clip) <= seconds * SAMPLE_RATE for public in self.clips):
            return self
        end = int(seconds * SAMPLE_RATE)
        return PublicSet(tuple(PublicClip(c.clip[:end], c.language) for c in self.clips))

    def to_bytes(self) -> bytes:
        """Return the clips as bytes, 2 per sample; `read_public_set` reads them."""
        samples = [_codes(public.clip) for public in self.clips]
        languages = json.dumps([public.language for public in self.clips]).encode()
        return save(
            {
                "samples": np.concatenate(samples),
                "lengths": np.array([len(codes) for codes in samples], np.int64),
                "languages": np.frombuffer(languages, np.uint8),
            }
        )


def public_set_of(clips: Iterable[PublicClip]) -> PublicSet:
    """Return clips as a set, their samples rounded to 16 bits."""
    return PublicSet(tuple(PublicClip(_samples(_codes(c.clip)), c.language) for c in clips))


def read_public_set(data: bytes) -> PublicSet:
    """Return the set that `PublicSet.to_bytes` wrote; `FedsimError` for anything else."""
    try:
        arrays = load(data)
        samples, lengths = arrays["samples"], arrays["lengths"]
        languages = json.loads(arrays["languages"].tobytes())
        if not _are_clips(samples, lengths, languages):
            raise ValueError("not what a set is written as")
        parts = np.split(samples, np.cumsum(lengths)[:-1])
        pairs = zip(parts, languages, strict=True)
        public = PublicSet(tuple(PublicClip(_samples(codes), spoken) for codes, spoken in pairs))
        if public.to_bytes() != data:  # more than a set has, or written in another way
            raise ValueError("not what a set is written as")
        return public
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FedsimError(
            "the public clips that the server sent are damaged; run the same version of fedsim on"
            " both sides"
        ) from error


def _are_clips(samples: np.ndarray, lengths: np.ndarray, languages: object) -> bool:
    """Return whether types are those of a set, and lengths add up to the samples."""
    if samples.dtype != np.int16 or lengths.dtype != np.int64 or not isinstance(languages, list):
        return False
    if samples.ndim != 1 or lengths.ndim != 1 or not 0 < len(lengths) == len(languages):
        return False
    spoken = [name for name in languages if name is not None]
    if not all(isinstance(name, str) and len(name) <= _MAX_LANGUAGE for name in spoken):
        return False
    counts = lengths.tolist()  # integers that do not overflow
    return min(counts) >= 0 and sum(counts) == samples.size


def _codes(samples: np.ndarray) -> np.ndarray:
    steps = np.rint(np.asarray(samples, np.float32) * _FULL_SCALE)
    return np.clip(steps, -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def _samples(codes: np.ndarray) -> np.ndarray:
    return codes.astype(np.float32) / np.float32(_FULL_SCALE)
