"""The metadata of utterances in one form, whatever reader they are from: genders and languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fedsim.base.units import count_words
from fedsim.errors import FedsimError, quoted
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.clips import Utterance
from fedsim.speech.genders import FEMALE, MALE, OTHER, gender_of_word, is_known
from fedsim.speech.languages import language_code
from fedsim.speech.speakers import fill_genders

_MAX_NAMED = 10
"""Words that a sentence lists."""


def tidied(
    utterances: Sequence[Utterance], corpus: CorpusSettings
) -> tuple[list[Utterance], tuple[str, ...]]:
    """Return the utterances that a corpus uses, and sentences about their metadata.

    Clips of `corpus.leave_out` are left out; genders are female, male or none, filled in from
    `corpus.speakers` where the corpus states none; languages are codes that models know.

    Raises `FedsimError` as `fill_genders` does, and for words that are no genders if these make
    the clients.
    """
    kept = [u for u in utterances if u.text not in corpus.leave_out]
    genders = {word: gender_of_word(word) for word in {u.gender for u in kept}}
    kept = [
        u if genders[u.gender] == u.gender else replace(u, gender=genders[u.gender]) for u in kept
    ]
    if corpus.speakers is not None:
        kept = fill_genders(kept, corpus.speakers)
    notes = [*_unknown_genders(kept, corpus)]
    codes = {word: language_code(word) for word in {u.language for u in kept}}
    renamed = {w: c for w, c in codes.items() if w is not None and c != w}
    if renamed:
        named = [f"{word} as {code}" for word, code in sorted(renamed.items())]
        notes.append(f"languages are read as codes that models know: {_listed(named)}")
    kept = [_final(u, codes[u.language]) for u in kept]
    without = sum(getattr(u, corpus.group_by) is None for u in kept)
    if 0 < without < len(kept):
        notes.append(
            f"{without:,} of {count_words(len(kept), 'clip')} without a {corpus.group_by} belong to"
            f" no client"
        )
    return kept, tuple(notes)


def _unknown_genders(utterances: Sequence[Utterance], corpus: CorpusSettings) -> Iterator[str]:
    unknown = [u for u in utterances if not is_known(u.gender)]
    if not unknown:
        return
    counts = Counter(str(u.gender) for u in unknown)
    words = _listed([f"{quoted(word)} ({n:,})" for word, n in sorted(counts.items())])
    if corpus.group_by == "gender":
        raise FedsimError(
            f"corpus {corpus.path}: words that are no genders, with their clips: {words}, the first"
            f" is clip {unknown[0].key}; write {FEMALE}, {MALE} or {OTHER}, or nothing"
        )
    yield f"words that are no genders count as none: {words}"


def _final(utterance: Utterance, language: str | None) -> Utterance:
    gender = utterance.gender if utterance.gender in (FEMALE, MALE) else None
    if (gender, language) == (utterance.gender, utterance.language):
        return utterance
    return replace(utterance, gender=gender, language=language)


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _MAX_NAMED:,} more" if len(words) > _MAX_NAMED else ""
    return ", ".join(words[:_MAX_NAMED]) + more
