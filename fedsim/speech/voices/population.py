"""The corpus kind `voices`: the speakers of a scenario, and the texts of each client."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from fedsim.base.seeds import client_rng
from fedsim.errors import FedsimError
from fedsim.scenario.corpus import CorpusSettings, PopulationSettings
from fedsim.speech.clips import ClientData, Clients, Utterance
from fedsim.speech.voices import Take
from fedsim.speech.voices.places import scene_of
from fedsim.speech.voices.sentences import (
    WORD_SECONDS,
    WORDS,
    Role,
    draw_sentences,
    grammar,
    read_sentences,
)
from fedsim.speech.voices.speaker import (
    FIRST_TRAINING_SPEAKER,
    GENDERS,
    Speaker,
    gender_of,
    speaker,
)
from fedsim.speech.voices.synthesizer import require_synthesizer

_TEST_TAKES = 1_000_000
"""Takes of test clips are numbered from here on, so that none repeats a take of tuning."""


def open_population(corpus: CorpusSettings, seed: int) -> Clients:
    """Return the clients of a population: one per speaker, or one per gender or language.

    Raises `FedsimError` if the synthesizer is not installed, for a language without a grammar, and
    for speakers that are reserved for training. Making a client raises it for a sentence list that
    cannot be read or is too short.
    """
    require_synthesizer()
    people = _population(corpus)
    for language in people.languages:
        grammar(language)
        if "words" in people.topics and language != "en":
            raise FedsimError(
                f"corpus.population: the topic 'words' is English; remove {language!r} from "
                f"languages, or choose other topics"
            )
    if _number(people, people.speakers - 1) >= FIRST_TRAINING_SPEAKER:
        raise FedsimError(
            f"corpus.population: speakers from number {FIRST_TRAINING_SPEAKER:,} on were heard by "
            f"the bundled models in training; lower first or speakers"
        )
    if corpus.group_by == "speaker":
        places = {f"{lang}-{number:06d}": (lang, number) for lang, number in _identities(people)}
        keys = sorted(places)
        clips = corpus.tuning_clips, corpus.test_clips
        make = partial(_one_speaker, corpus, places, seed)
        return Clients(keys, make, clips)
    groups = list(people.genders if corpus.group_by == "gender" else people.languages)
    return Clients(sorted(groups), lambda key: _client(corpus, key, _members(corpus, key), seed))


def _one_speaker(
    corpus: CorpusSettings, places: dict[str, tuple[str, int]], seed: int, key: str
) -> ClientData:
    return _client(corpus, key, (speaker(*places[key]),), seed)


def _identities(people: PopulationSettings) -> Iterator[tuple[str, int]]:
    """Yield language and number of each speaker: languages in turn, genders balanced in each."""
    for i in range(people.speakers):
        language = people.languages[i % len(people.languages)]
        yield language, _gendered(people, language, _number(people, i))


def _number(people: PopulationSettings, i: int) -> int:
    """Return the number of the `i`-th speaker, or of its pair where only one gender is chosen."""
    place = i // len(people.languages)
    if len(people.genders) == len(GENDERS):
        return people.first + place
    return people.first + people.first % 2 + 2 * place  # one of each whole pair


def _gendered(people: PopulationSettings, language: str, number: int) -> int:
    """Return the number of the one in a pair who has the chosen gender; with both, `number`."""
    if len(people.genders) == len(GENDERS):
        return number
    even = number - number % 2
    return even if gender_of(language, even) == people.genders[0] else even + 1


def _members(corpus: CorpusSettings, key: str) -> tuple[Speaker, ...]:
    """Return the speakers of a group whose clips are used, not more than there are clips."""
    needed = max(corpus.tuning_clips, corpus.test_clips)
    found: list[Speaker] = []
    for language, number in _identities(_population(corpus)):
        who = speaker(language, number)
        if key in (who.gender, who.language):
            found.append(who)
        if len(found) == needed:
            break
    return tuple(found)


def _client(
    corpus: CorpusSettings, key: str, members: tuple[Speaker, ...], seed: int
) -> ClientData:
    """Return one client, whose members say its sentences in turn."""
    tuning = _utterances(corpus, key, members, "tuning", seed)
    test = _utterances(corpus, key, members, "test", seed)
    spoken = {who.language for who in members}
    return ClientData(key, tuning, test, spoken.pop() if len(spoken) == 1 else None)


def _utterances(
    corpus: CorpusSettings, key: str, members: tuple[Speaker, ...], role: Role, seed: int
) -> tuple[Utterance, ...]:
    n = corpus.tuning_clips if role == "tuning" else corpus.test_clips
    rng = client_rng(seed, key, role)
    speakers = [members[i % len(members)] for i in range(n)] if members else []
    texts = {
        language: iter(_texts(corpus, language, role, count, rng, seed))
        for language, count in _counts(speakers)
    }
    first_take = _TEST_TAKES if role == "test" else 0
    people = _population(corpus)
    seconds = WORD_SECONDS if people.topics == ("words",) else 0.0
    found = []
    for i, who in enumerate(speakers):
        text = next(texts[who.language])
        scene = scene_of(people.place_of(who.number), who)
        found.append(
            Utterance(
                key=f"{who.key}/{role}-{i:04d}",
                source=Take(who, text, first_take + i, seconds, scene),
                text=text if role == "test" else None,
                speaker=who.key,
                gender=who.gender,
                language=who.language,
            )
        )
    return tuple(found)


def _counts(speakers: list[Speaker]) -> list[tuple[str, int]]:
    languages = [who.language for who in speakers]
    return [(language, languages.count(language)) for language in dict.fromkeys(languages)]


def _population(corpus: CorpusSettings) -> PopulationSettings:
    assert corpus.population is not None  # the schema sees to it
    return corpus.population


def _texts(
    corpus: CorpusSettings, language: str, role: Role, n: int, rng: np.random.Generator, seed: int
) -> list[str]:
    """Return `n` sentences of one role; of the topic `words`, all 35 before any comes again."""
    people = _population(corpus)
    if people.sentences is not None:
        return _listed(Path(people.sentences), role, n, rng, seed)
    if people.topics == ("words",):
        rounds = [rng.permutation(WORDS) for _ in range(-(-n // len(WORDS)))]
        return [str(word) for word in np.concatenate(rounds)[:n]]
    return draw_sentences(language, people.topics, role, n, rng)


def _listed(path: Path, role: Role, n: int, rng: np.random.Generator, seed: int) -> list[str]:
    """Return `n` sentences of a user's list, half of which is for tuning and half for tests."""
    halves = _halves(path, seed)
    half = halves[0] if role == "tuning" else halves[1]
    if len(half) < n:
        raise FedsimError(
            f"sentence list {path} has {len(half)} sentences for {role} (half of the list), and "
            f"corpus.{role}_clips asks for {n}: add sentences or lower it"
        )
    return [half[i] for i in rng.permutation(len(half))[:n]]


def _halves(path: Path, seed: int) -> tuple[list[str], list[str]]:
    changed = path.stat().st_mtime_ns if os.path.isfile(path) else 0
    return _split_list(path, changed, seed)


@lru_cache(maxsize=4)
def _split_list(path: Path, changed: int, seed: int) -> tuple[list[str], list[str]]:
    """Return the two halves of a list; `changed`, its time, makes an edited list be read again."""
    sentences = read_sentences(path)
    order = np.random.default_rng([seed, len(sentences)]).permutation(len(sentences))
    middle = len(sentences) // 2
    return [sentences[i] for i in order[:middle]], [sentences[i] for i in order[middle:]]
