"""The texts of synthetic speakers: sentences from word grammars, the words of Speech Commands.

Each sentence of a grammar has one fixed role, given by its hash: "training" (of the bundled
models), "tuning" or "test". So no test sentence occurs in the tuning of any client, nor in
training.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from fedsim.base.files import read_text
from fedsim.errors import FedsimError, nearest
from fedsim.speech.normalizers import basic as normalize

Role = Literal["training", "tuning", "test"]
ROLES: tuple[Role, ...] = ("training",) * 6 + ("tuning",) * 2 + ("test",) * 2
WORD_SECONDS = 1.0
"""Minimum length of a clip of one word, as in Speech Commands."""
_FOLDER = Path(__file__).with_name("sentences")
_BRACKETS = re.compile(r"[()\[\]<>]")
_SLOT = re.compile(r"\{(\w+)\}")
_TRIES = 200
_MISSES = 5_000
"""Sentences in a row that are nothing new after which a grammar counts as exhausted."""
MAX_LIST = 2**26
"""Bytes of a sentence list that is read."""


@dataclass(frozen=True)
class Grammar:
    """One language's templates by topic, and the words that fill their slots."""

    slots: dict[str, tuple[str, ...]]
    topics: dict[str, tuple[str, ...]]
    words: tuple[str, ...] = ()
    """Words that are clips of their own; English only."""


@cache
def grammar(language: str) -> Grammar:
    """Return the grammar of a language; raises `FedsimError` if there is none."""
    path = _FOLDER / f"{language}.yaml"
    if not path.is_file():
        raise FedsimError(f"no voice speaks {language!r}: {nearest(language, languages())}")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    slots, topics = ({k: tuple(v) for k, v in content[p].items()} for p in ("slots", "topics"))
    return Grammar(slots, topics, tuple(content.get("words", ())))


WORDS = grammar("en").words
"""The 35 words of Speech Commands v0.02 (Warden 2018), each a sentence by itself."""


@cache
def languages() -> tuple[str, ...]:
    """Return every language with a grammar, in order."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def role_of(sentence: str) -> Role:
    """Return the role of a sentence by its hash: of 10, about 6 train, 2 tune and 2 test."""
    digest = hashlib.sha256(sentence.encode()).digest()
    return ROLES[int.from_bytes(digest[:8], "little") % len(ROLES)]


def draw_sentences(
    language: str, topics: tuple[str, ...], role: Role, n: int, rng: np.random.Generator
) -> list[str]:
    """Return `n` distinct sentences of one role; topics, and templates of one, are equally likely.

    Raises `FedsimError` if the grammar lacks a topic or has too few sentences.
    """
    spoken = grammar(language)
    for topic in topics:
        if topic not in spoken.topics:
            raise FedsimError(f"there is no topic {topic!r}: {nearest(topic, spoken.topics)}")
    found: dict[str, None] = {}
    misses = 0
    for _ in range(_TRIES * n):
        if len(found) == n or misses > _MISSES:
            break
        misses += 1
        templates = spoken.topics[topics[rng.integers(len(topics))]]
        sentence = _fill(templates[rng.integers(len(templates))], spoken, rng)
        if role_of(sentence) == role:
            misses = misses if sentence in found else 0
            found.setdefault(sentence)
    if len(found) < n:
        raise FedsimError(
            f"the topics {', '.join(topics)} have fewer than {n} {role} sentences in "
            f"{language!r}; ask for fewer clips or more topics"
        )
    return list(found)


def _fill(template: str, spoken: Grammar, rng: np.random.Generator) -> str:
    def one(slot: re.Match[str]) -> str:
        words = spoken.slots[slot[1]]
        return words[rng.integers(len(words))]

    return _SLOT.sub(one, template)


def read_sentences(path: Path) -> list[str]:
    """Return the sentences of a text file, one per line, without blank lines and `#` lines.

    Lines that differ only in capitals and punctuation sound alike: the first of them is kept.

    Raises `FedsimError` if the file cannot be read, or no line has a letter or digit.
    """
    try:
        lines = read_text(path, MAX_LIST).splitlines()
    except FedsimError as error:
        raise FedsimError(f"sentence list {error}") from None
    # Scoring ignores text in brackets: without the brackets it is scored like any other.
    kept = [line for line in lines if not line.strip().startswith("#")]
    texts = [" ".join(_BRACKETS.sub(" ", line).split()) for line in kept]
    spoken = [text for text in texts if any(c.isalnum() for c in normalize(text))]
    if not spoken:
        raise FedsimError(
            f"sentence list {path} holds no text that could be spoken; write one sentence per line"
        )
    distinct: dict[str, str] = {}
    for text in spoken:
        distinct.setdefault(normalize(text), text)
    return list(distinct.values())
