"""Running an exported Whisper with numpy and onnxruntime sessions, and fedsim's rule for loops.

Greedy decoding as in `fedsim.speech.models.whisper`: the same prompt, the same tokens left out, the
same maximum length, and loops stopped. `generation_config.json` says which language it is; without
one it is detected for each clip.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.speech.repetition import stop

ENCODER, DECODER = "encoder_model.onnx", "decoder_model_merged.onnx"
_RATE, _FFT, _HOP = 16_000, 400, 160
TOKENS_PER_SECOND, EXTRA_TOKENS = 12, 8
"""As in `fedsim.speech.models.whisper`, which cannot be imported without torch."""
_SPECIAL = "<|"


@dataclass(frozen=True)
class Whisper:
    """An exported model; `transcribe` is all that it does."""

    encoder: Any
    decoder: Any
    config: dict[str, Any]
    rules: dict[str, Any]
    tokens: dict[int, str]
    special: frozenset[int]
    filters: np.ndarray
    """(201, mels)."""

    def transcribe(self, clip: np.ndarray) -> str:
        """Return the transcript of a clip, float32 (samples,) at 16 kHz, that fits the window."""
        return self.recognize(clip)[0]

    def recognize(self, clip: np.ndarray) -> tuple[str, bool]:
        """Return the transcript of such a clip, and whether it was cut because it looped."""
        frames = 2 * self.config["max_source_positions"]
        features = mel_features(clip, frames, self.filters)
        (states,) = self.encoder.run(None, {"input_features": features[None]})
        prompt = self._prompt(states)
        bound = EXTRA_TOKENS + math.ceil(TOKENS_PER_SECOND * -(-len(clip) // _HOP) * _HOP / _RATE)
        bound = min(bound, self.config["max_target_positions"] - len(prompt))
        never, first = self.rules.get("suppress_tokens"), self.rules.get("begin_suppress_tokens")
        cache, step = self._no_past(), prompt
        produced: list[int] = []
        while True:
            logits = self._step(step, states, cache)
            logits[[*(never or ()), *(() if produced else first or ())]] = -np.inf
            step = [int(logits.argmax())]
            produced += step
            if found := stop(produced, self.rules["eos_token_id"], bound):
                return self.text(produced[: found[0]]), found[1]

    def text(self, ids: list[int]) -> str:
        """Return the text of tokens, without special ones."""
        letters = "".join(self.tokens[i] for i in ids if i not in self.special)
        return bytes(_BYTES[letter] for letter in letters).decode(errors="replace").strip()

    def _prompt(self, states: np.ndarray) -> list[int]:
        rules = self.rules
        start, quiet = rules["decoder_start_token_id"], rules["no_timestamps_token_id"]
        if not rules.get("is_multilingual"):
            return [start, quiet]
        languages = rules["lang_to_id"]
        if rules.get("language"):
            language = languages[f"<|{rules['language']}|>"]
        else:
            known = sorted(languages.values())
            language = known[int(self._step([start], states, self._no_past())[known].argmax())]
        return [start, language, rules["task_to_id"]["transcribe"], quiet]

    def _no_past(self) -> dict[str, np.ndarray]:
        inputs = [i for i in self.decoder.get_inputs() if i.name.startswith("past_key_values.")]
        return {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in inputs}

    def _step(self, ids: list[int], states: np.ndarray, cache: dict[str, Any]) -> np.ndarray:
        """Return the logits (V,) that follow tokens, and remember these in the cache."""
        cached = any(past.shape[2] for past in cache.values())
        feeds = {
            "input_ids": np.array([ids]),
            "encoder_hidden_states": states,
            "use_cache_branch": np.array([cached]),
            **cache,
        }
        logits, *presents = self.decoder.run(None, feeds)
        pairs = zip(cache, presents, strict=True)
        cache |= {name: present for name, present in pairs if len(present)}
        return logits[0, -1]


def opened(folder: Path, session: Callable[[str], Any]) -> Callable[[np.ndarray], str]:
    """Return what transcribes a clip, float32 (samples,), with the model of a folder, of which
    `session` opens a file by its name."""
    return loaded(folder, session).transcribe


def loaded(folder: Path, session: Callable[[str], Any]) -> Whisper:
    """Return the model of a folder, of which `session` opens a file by its name."""

    def read(name: str) -> dict[str, Any]:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    config, added = read("config.json"), read("added_tokens.json")
    tokens = {number: token for token, number in (read("vocab.json") | added).items()}
    special = frozenset(number for token, number in added.items() if token.startswith(_SPECIAL))
    filters = mel_filters(config["num_mel_bins"])
    encoder, decoder = session(ENCODER), session(DECODER)
    rules = read("generation_config.json")
    return Whisper(encoder, decoder, config, rules, tokens, special, filters)


def mel_features(clip: np.ndarray, frames: int, filters: np.ndarray) -> np.ndarray:
    """Return the log mel spectrogram (mels, frames) of a clip filled up with silence."""
    filled = np.zeros(frames * _HOP, np.float32)
    filled[: len(clip)] = clip
    padded = np.pad(filled, _FFT // 2, mode="reflect")
    pieces = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP][:frames]
    window = np.hanning(_FFT + 1)[:-1].astype(np.float32)
    power = np.abs(np.fft.rfft(pieces * window)) ** 2
    log = np.log10(np.maximum(power @ filters, 1e-10)).T
    return ((np.maximum(log, log.max() - 8) + 4) / 4).astype(np.float32)


def mel_filters(mels: int) -> np.ndarray:
    """Return triangular filters (201, mels) of equal area on Slaney's scale up to 8 kHz: linear to
    1 kHz, then logarithmic."""
    step = math.log(6.4) / 27
    top = 15 + math.log(_RATE / 2 / 1000) / step
    marks = np.linspace(0, top, mels + 2)
    edges = np.where(marks < 15, 200 / 3 * marks, 1000 * np.exp(step * (marks - 15)))
    bins = np.linspace(0, _RATE / 2, _FFT // 2 + 1)[:, None]
    widths = np.diff(edges)
    rising, falling = (bins - edges[:-2]) / widths[:-1], (edges[2:] - bins) / widths[1:]
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


def _byte_letters() -> dict[str, int]:
    """Return the byte that each letter of a byte-level token stands for (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


_BYTES = _byte_letters()
