"""The training clips: rendered once, stored in one file, read through a memory map.

Every clip has a speaker of its own, numbered from `FIRST_TRAINING_SPEAKER` on, and a sentence whose
role is "training". Nothing here is used by a scenario.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsim.scenario.corpus import TOPICS
from fedsim.speech.voices import Take, render
from fedsim.speech.voices.sentences import WORD_SECONDS, WORDS, draw_sentences
from fedsim.speech.voices.speaker import FIRST_TRAINING_SPEAKER, speaker

_CHUNK = 500


@dataclass(frozen=True)
class Pool:
    """Clips end to end in `samples` (int16 at 16 kHz); clip i is `samples[ends[i - 1]:ends[i]]`."""

    samples: np.ndarray
    ends: np.ndarray
    texts: tuple[str, ...]

    def clip(self, i: int) -> np.ndarray:
        """Return clip `i` as float32 (n,)."""
        start = self.ends[i - 1] if i else 0
        return self.samples[start : self.ends[i]].astype(np.float32) / 32_768


def open_pool(folder: Path, kind: str, clips: int, workers: int) -> Pool:
    """Return `clips` clips of English "sentences" or "words", rendered if they are not there."""
    path = folder / f"{kind}-{clips}"
    if not path.with_suffix(".json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        ends, texts, total = [], [], 0
        with (
            ProcessPoolExecutor(workers) as processes,
            path.with_suffix(".raw").open("wb") as file,
        ):
            starts = range(0, clips, _CHUNK)
            for part in processes.map(_render, [kind] * len(starts), starts):
                for text, clip in part:
                    file.write(clip.tobytes())
                    total += len(clip)
                    ends.append(total)
                    texts.append(text)
                print(f"rendered {len(texts):,} of {clips:,} {kind}", flush=True)
        path.with_suffix(".json").write_text(json.dumps({"ends": ends[:clips], "texts": texts}))
    index = json.loads(path.with_suffix(".json").read_text())
    samples = np.memmap(path.with_suffix(".raw"), np.int16, "r")
    return Pool(samples, np.array(index["ends"]), tuple(index["texts"]))


def _render(kind: str, start: int) -> list[tuple[str, np.ndarray]]:
    return [(take.text, (render(take) * 32_768).astype(np.int16)) for take in _takes(kind, start)]


def _takes(kind: str, start: int) -> Iterator[Take]:
    """Yield the takes of one chunk: speaker i says text i."""
    rng = np.random.default_rng([ord(kind[0]), start])
    seconds = WORD_SECONDS if kind == "words" else 0.0
    if kind == "words":
        texts = list(rng.permutation(WORDS * (_CHUNK // len(WORDS) + 1))[:_CHUNK])
    else:
        texts = draw_sentences("en", TOPICS, "training", _CHUNK, rng)
    for i, text in enumerate(texts):
        yield Take(speaker("en", FIRST_TRAINING_SPEAKER + start + i), str(text), 0, seconds)
