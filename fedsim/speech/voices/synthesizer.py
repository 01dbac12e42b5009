"""The speech synthesizer eSpeak NG, called so that a text always gives the same samples.

eSpeak keeps hidden state between utterances (the phase of its pitch flutter, a running gain), so
samples would depend on the earlier utterances of the process. The library is therefore loaded and
unloaded for each utterance, which takes about 1 ms.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np

from fedsim.errors import FedsimError

SYNTHESIZER_RATE = 22_050
"""Hz of the samples of eSpeak NG."""
_RETRIEVAL, _UTF8 = 2, 1  # output mode and text encoding
_RATE, _PITCH, _PITCH_RANGE = 1, 3, 4  # espeak_SetParameter
_END_OF_LIST, _WORD = 0, 1  # event types
_RANDOM_SEED = 1  # of its breath and noise; differences between takes are drawn elsewhere
T = TypeVar("T")
_LOCK = threading.Lock()  # the library is not thread-safe


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass(frozen=True)
class Synthesis:
    """Speech: `samples` int16 (n,) at 22,050 Hz, and the index at which each word begins."""

    samples: np.ndarray
    word_starts: tuple[int, ...]


def synthesize(text: str, voice: str, *, rate: int, pitch: int, pitch_range: int) -> Synthesis:
    """Return `text` as spoken by a voice.

    Args:
        text: one sentence in the voice's language.
        voice: language or accent, and a variant: "en-gb-scotland+f2".
        rate: words per minute, 80..450.
        pitch: 0..99; 50 is the default of the variant.
        pitch_range: 0..99; 50 is the default of the variant, 0 is monotone.

    Raises:
        FedsimError: if the synthesizer is not installed, lacks the voice, or cannot be reset on
            this system.
    """
    parameters = {_RATE: rate, _PITCH: pitch, _PITCH_RANGE: pitch_range}
    return _uninterrupted(_speak, text.encode(), voice, parameters)


def require_synthesizer() -> None:
    """Raise `FedsimError` if the synthesizer cannot be used here."""
    _uninterrupted(_library)


def _uninterrupted(function: Callable[..., T], *arguments: object) -> T:
    """Return what `function` returns, called to its end in another thread.

    Ctrl-C is raised in the main thread only. There, ctypes would swallow it in eSpeak's callback,
    or it would come between loading and unloading the library, whose state would then persist.
    """
    return _thread(os.getpid()).submit(function, *arguments).result()


@cache
def _thread(pid: int) -> ThreadPoolExecutor:
    """Return the synthesizer's thread of process `pid`: a fork inherits no threads."""
    return ThreadPoolExecutor(1, f"synthesizer-{pid}")


def _speak(text: bytes, voice: str, parameters: dict[int, int]) -> Synthesis:
    path, data = _library()
    chunks: list[bytes] = []
    starts: list[int] = []

    def collect(samples: ctypes._Pointer, n: int, events: ctypes._Pointer) -> int:
        if samples and n > 0:
            chunks.append(ctypes.string_at(samples, 2 * n))
        place = 0
        while events[place].type != _END_OF_LIST:
            if events[place].type == _WORD:
                starts.append(events[place].sample)
            place += 1
        return 0

    callback = _CALLBACK(collect)
    with _LOCK:
        library = ctypes.CDLL(path)
        try:
            library.espeak_Initialize(_RETRIEVAL, 0, data, 0)
            library.espeak_SetSynthCallback(callback)
            library.espeak_ng_SetRandSeed(ctypes.c_long(_RANDOM_SEED))
            if library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise FedsimError(f"the speech synthesizer has no voice {voice!r}; choose another")
            for parameter, value in parameters.items():
                library.espeak_SetParameter(parameter, value, 0)
            library.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8, None, None)
            library.espeak_Terminate()
        finally:
            _unload(library)
    return Synthesis(np.frombuffer(b"".join(chunks), np.int16), tuple(starts))


@cache
def _library() -> tuple[str, bytes]:
    """Return the paths of the library and of its data."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise FedsimError(
            "corpus kind 'voices' needs the speech synthesizer: pip install 'fedsim-speech[voices]'"
        ) from error
    path = espeakng_loader.get_library_path()
    _unload(ctypes.CDLL(path))
    try:
        ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:  # unloaded, as it must be
        return path, espeakng_loader.get_data_path().encode()
    raise FedsimError(
        f"{path} stays loaded, so a speaker would sound different from run to run; do not load "
        f"eSpeak NG in this process by other means"
    )


def _unload(library: ctypes.CDLL) -> None:
    ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))
