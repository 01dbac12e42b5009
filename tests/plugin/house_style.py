"""A plug-in for fedsim: allocator, corpus reader, text normalizer and release, in one file."""

from pathlib import Path

import numpy as np

from fedsim.privacy.payloads import numbers
from fedsim.privacy.releases import Release
from fedsim.quant.allocation import ALLOCATORS, Allocator
from fedsim.scenario.corpus import CorpusReader
from fedsim.scenario.scores import TextNormalizer
from fedsim.speech.clips import Utterance
from fedsim.speech.grouping import grouped


def by_weight(values, sizes, budget, rng):
    """Algorithm 1, but a layer's value counts by its bytes."""
    return ALLOCATORS["myqasr"].plan(values * sizes.layer_bytes[:, -1], sizes, budget, rng)


def open_named(corpus, seed):
    """Recordings named speaker_words-of-the-text.wav in one folder."""
    names = [(file, *file.stem.split("_")[:2]) for file in sorted(Path(corpus.path).glob("*.wav"))]
    clips = [Utterance(f.name, f, t.replace("-", " "), speaker) for f, speaker, t in names]
    return grouped(clips, corpus, seed)


ALLOCATOR = Allocator(
    by_weight, summary="Algorithm 1 by value times bytes.", meaning="large, loud layers lose bits"
)
READER = CorpusReader(open_named, summary="Files named speaker_text.wav.", needs=("path",))
TEXTS = TextNormalizer(str.upper, summary="Capitals, and punctuation as it is.")
RELEASE = Release(
    make=lambda values, params, rng: values.astype("<f2").tobytes(),
    read=lambda payload, params: numbers(payload, "<f2", params.values).astype(np.float64),
    summary="Values in half precision, 2 bytes each.",
    statement="Each device sends 2 bytes per layer, without noise.",
    settings=(),
)
