"""The broad public set: clips that belong to no client, from which public statistics are made.

Either reserved synthetic voices in many places, or the clips of any corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice

import numpy as np

from fedsim.errors import FedsimError
from fedsim.scenario.corpus import READERS, TOPICS, CorpusSettings
from fedsim.scenario.place import DEFAULT_NOISES, PlaceSettings
from fedsim.speech.clips import ClientData, Utterance, read_utterance
from fedsim.speech.public_set import PublicClip, PublicSet, public_set_of
from fedsim.speech.voices import Take
from fedsim.speech.voices.places import scene_of
from fedsim.speech.voices.sentences import WORD_SECONDS, WORDS, draw_sentences
from fedsim.speech.voices.speaker import ACCENTS, FIRST_BROAD_SPEAKER, speaker

PUBLIC_CLIPS = 128
"""Clips of the public set: with 16 the compensated rounding of the bundled recognizer is worse."""
_SEED = 0
_TEXTS = 40
"""Sentences that are drawn together, none twice: few enough for any topic."""
_QUIET_EVERY = 4
_FIRST_NOISE, *_MORE_NOISES = (PlaceSettings(kind="noisy", noise=(n,)) for n in DEFAULT_NOISES)
_OTHER_PLACES = (
    *(_FIRST_NOISE, PlaceSettings(kind="telephone"), _MORE_NOISES[0]),
    *(PlaceSettings(kind="far"), *_MORE_NOISES[1:]),
)


@dataclass(frozen=True)
class PublicRequest:
    """Which public clips: equal requests give the same clips, sample for sample."""

    languages: tuple[str, ...]
    """Of a corpus, empty for all."""
    topics: tuple[str, ...]
    n_clips: int
    corpus: str | None = None
    """Settings of the corpus that the clips come from instead, as JSON."""


def public_request(
    languages: Sequence[str] = ("en",),
    topics: Sequence[str] = TOPICS,
    *,
    n_clips: int = PUBLIC_CLIPS,
    corpus: CorpusSettings | None = None,
    language: str | None = None,
) -> PublicRequest:
    """Return a request for public clips.

    Args:
        languages: of the synthetic voices, to which the clips are dealt round.
        topics: of what they say; `words` are English, other languages then have all topics.
        n_clips: number of clips; of a corpus at most as many.
        corpus: take its clips instead, whatever kind it is: nothing else is then read but
            `n_clips` and `language`.
        language: of the corpus' clips; those of which the language is not known are taken too. None
            for all clips.

    Raises:
        FedsimError: for less than one clip, and for no language.
    """
    if n_clips < 1:
        raise FedsimError(f"{n_clips} public clips: ask for at least 1")
    if corpus is not None:
        only = () if language is None else (language,)
        return PublicRequest(only, (), n_clips, corpus.model_dump_json())
    if not languages:
        raise FedsimError("public clips have no language: name at least one")
    return PublicRequest(tuple(dict.fromkeys(languages)), tuple(topics), n_clips)


def public_set(request: PublicRequest) -> PublicSet:
    """Return the clips of a request, the same in every process.

    Synthetic ones: each of another speaker, with women and men in turn, accents dealt round, and
    a sentence of the role "tuning", on which nobody is tested. A quarter is quiet; the others
    stand, in turn, in each noise at 0 to 20 dB, at a telephone and far away. Any number of them
    from the first on is as broad as it can be.

    Of a corpus: the tuning clips of its clients in key order, the first of each, then the second.

    Raises:
        FedsimError: if the synthesizer is not installed, no voice speaks a language, or the corpus
            cannot be opened or has no tuning clips.
        AudioError: if a clip of the corpus cannot be read.
    """
    if request.corpus is not None:
        corpus = CorpusSettings.model_validate_json(request.corpus)
        return public_set_of(_of_corpus(corpus, request.n_clips, request.languages))
    takes = public_takes(request)
    return public_set_of(PublicClip(take.render(), take.speaker.language) for take in takes)


def public_takes(request: PublicRequest) -> Iterator[Take]:
    """Yield who says what, and where, of a request for synthetic clips; see `public_set`."""
    for language in request.languages:
        if language not in ACCENTS:
            raise FedsimError(
                f"no voice speaks {language!r}, so there are no public clips in it: give"
                f" quantization.public_clips, a corpus of your own"
            )
    if find_spec("espeakng_loader") is None:
        raise FedsimError(
            "public clips need the speech synthesizer: pip install 'fedsim-speech[voices]', or give"
            " quantization.public_clips, a corpus of your own"
        )
    texts = {language: _texts(language, request.topics) for language in request.languages}
    for i in range(request.n_clips):
        place, which = divmod(i, len(request.languages))
        language = request.languages[which]
        who = speaker(language, FIRST_BROAD_SPEAKER + place)
        accents = ACCENTS[language]
        who = replace(who, accent=accents[place // 2 % len(accents)])
        words = language == "en" and request.topics == ("words",)
        # Each language begins elsewhere, so that together they fill the places.
        scene = scene_of(_place(place + which), who)
        yield Take(who, next(texts[language]), 0, WORD_SECONDS if words else 0.0, scene)


def _place(i: int) -> PlaceSettings:
    """Return the place of clip `i`: every fourth is quiet."""
    turn, at = divmod(i, _QUIET_EVERY)
    if at == 0:
        return PlaceSettings()
    return _OTHER_PLACES[(turn * (_QUIET_EVERY - 1) + at - 1) % len(_OTHER_PLACES)]


def _texts(language: str, topics: tuple[str, ...]) -> Iterator[str]:
    """Yield sentences without end."""
    rng = np.random.default_rng([_SEED, int.from_bytes(language.encode(), "little")])
    of_words = topics == ("words",)
    while True:
        if of_words and language == "en":
            yield from map(str, rng.permutation(WORDS))
        else:
            yield from draw_sentences(
                language, TOPICS if of_words else topics, "tuning", _TEXTS, rng
            )


def _of_corpus(
    corpus: CorpusSettings, n_clips: int, languages: tuple[str, ...]
) -> list[PublicClip]:
    dealt = (
        (client, u)
        for client, u in _dealt(corpus)
        if not languages or (u.language or client.language) in (None, *languages)
    )
    chosen = list(islice(dealt, n_clips))
    if not chosen and languages:
        raise FedsimError(
            f"quantization.public_clips: no tuning clip is in {' or '.join(languages)}; add"
            f" recordings in it, or choose clients of other languages"
        )
    if not chosen:
        raise FedsimError(
            f"quantization.public_clips: no {corpus.group_by} has a tuning clip; add recordings or"
            f" lower its test_clips"
        )
    return [
        PublicClip(read_utterance(u, convert=corpus.convert), u.language or client.language)
        for client, u in chosen
    ]


def _dealt(corpus: CorpusSettings) -> Iterator[tuple[ClientData, Utterance]]:
    """Yield the first tuning clip of each client in key order, then the second of each."""
    clients = READERS[corpus.kind].open(corpus, _SEED)
    keys = list(clients)
    place = 0
    while keys:
        left = []
        for key in keys:
            client = clients[key]
            if place < len(client.tuning):
                left.append(key)
                yield client, client.tuning[place]
        keys, place = left, place + 1
