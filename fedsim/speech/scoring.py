"""Error counts: of words and characters in transcripts, of clips for a classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from fedsim.speech.normalizers import Normalize, basic

RESAMPLES = 2_000
Measured = Literal["wer", "cer", "accuracy"]
"""What is counted: errors in words, errors in characters, or right clips."""


@dataclass(frozen=True)
class Errors:
    """Counts over some clips; word and character counts of a recognizer, `correct` of a
    classifier."""

    clips: int
    errors: int = 0
    words: int = 0
    char_errors: int = 0
    chars: int = 0
    correct: int = 0
    looped: int = 0
    """Clips whose hypothesis was cut because it repeated itself (`fedsim.speech.repetition`)."""
    looped_errors: int = 0
    """Word errors of these clips, which `errors` counts too; with CER their `char_errors`."""
    looped_words: int = 0
    """Words of these clips, which `words` counts too; with CER their `chars`."""
    rare_errors: int = 0
    """Rare words of the references that were substituted or deleted, which `errors` counts too."""
    rare_words: int = 0
    """Rare words of the references (`fedsim.speech.rare`), which `words` counts too."""

    def pair(self, measured: Measured) -> tuple[int, int]:
        """Return errors, and what they are errors of: words, characters or clips."""
        match measured:
            case "wer":
                return self.errors, self.words
            case "cer":
                return self.char_errors, self.chars
        return self.clips - self.correct, self.clips


def count_errors(
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalize: Normalize = basic,
    is_rare: Callable[[str], bool] | None = None,
) -> Errors:
    """Return word and character errors (substitutions + deletions + insertions) of transcripts.

    Both texts are normalized first; `normalize` gives single spaces. The counts are jiwer's, so a
    space counts as a character. A reference that is empty once normalized counts each word of its
    hypothesis as an insertion. With `is_rare`, a function of a normalized word, errors on rare
    words are counted too: of the same alignment, and without insertions, which belong to no word.
    """
    import jiwer

    pairs = [(normalize(r), normalize(h)) for r, h in zip(references, hypotheses, strict=True)]
    spoken = [(r, h) for r, h in pairs if r]
    word_errors = sum(len(h.split()) for r, h in pairs if not r)
    char_errors = sum(len(h) for r, h in pairs if not r)
    rare_errors = rare_words = 0
    if spoken:
        texts = [list(part) for part in zip(*spoken, strict=True)]
        words, chars = jiwer.process_words(*texts), jiwer.process_characters(*texts)
        word_errors += words.substitutions + words.deletions + words.insertions
        char_errors += chars.substitutions + chars.deletions + chars.insertions
        if is_rare is not None:
            rare_errors, rare_words = _count_rare(words, is_rare)
    return Errors(
        clips=len(pairs),
        errors=word_errors,
        words=sum(len(r.split()) for r, _ in pairs),
        char_errors=char_errors,
        chars=sum(len(r) for r, _ in pairs),
        rare_errors=rare_errors,
        rare_words=rare_words,
    )


def _count_rare(words: Any, is_rare: Callable[[str], bool]) -> tuple[int, int]:
    """Return how many rare words are wrong in the alignments of jiwer's `WordOutput`, of how
    many."""
    wrong = of = 0
    for reference, chunks in zip(words.references, words.alignments, strict=True):
        rare = [is_rare(word) for word in reference]
        of += sum(rare)
        for chunk in chunks:
            if chunk.type in ("substitute", "delete"):
                wrong += sum(rare[chunk.ref_start_idx : chunk.ref_end_idx])
    return wrong, of


def mark_looped(errors: Errors, measured: Measured = "wer") -> Errors:
    """Return the counts of clips that all looped."""
    wrong, of = errors.pair(measured)
    return replace(errors, looped=errors.clips, looped_errors=wrong, looped_words=of)


def count_correct(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Return the number of clips whose hypothesis equals the reference, ignoring case."""
    pairs = zip(references, hypotheses, strict=True)
    right = sum(r.strip().casefold() == h.strip().casefold() for r, h in pairs)
    return Errors(clips=len(references), correct=right)


def total(errors: Sequence[Errors]) -> Errors:
    """Return the sum of counts."""
    return Errors(**{f.name: sum(getattr(e, f.name) for e in errors) for f in fields(Errors)})


def interval(
    errors: Sequence[Errors], rng: np.random.Generator, measured: Measured = "wer"
) -> tuple[float, float]:
    """Return a 95 % interval of the corpus WER or CER, or of a classifier's accuracy.

    `errors` are the counts of each clip. A percentile bootstrap over clips with 2,000 resamples: it
    estimates how the rate varies with other clips of the same speaker. NaN if no reference has a
    word.
    """
    pairs = np.array([e.pair(measured) for e in errors], np.int64).reshape(-1, 2)
    top, bottom = pairs.T
    if measured == "accuracy":
        top = bottom - top
    draws = rng.integers(0, len(errors), (RESAMPLES, len(errors)))
    below = bottom[draws].sum(axis=1)
    rates = top[draws].sum(axis=1)[below > 0] / below[below > 0]
    low, high = np.percentile(rates, [2.5, 97.5]) if len(rates) else (np.nan, np.nan)
    return float(low), float(high)
