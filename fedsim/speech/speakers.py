"""The gender of each speaker, from a separate file for a corpus without it.

Either a CSV file with the columns speaker and gender, or LibriSpeech's SPEAKERS.TXT as it is in its
archives (openslr.org/12): lines of `ID | SEX | SUBSET | MINUTES | NAME`, and comments that begin
with a semicolon.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fedsim.base.files import read_text
from fedsim.base.text import composed
from fedsim.errors import FedsimError
from fedsim.speech.clips import Utterance
from fedsim.speech.genders import gender_of_word
from fedsim.speech.tables import csv_rows

MAX_LIST = 2**26
"""Bytes of a list of speakers, or of sentences, that is read."""
COLUMNS = ("speaker", "gender")


def fill_genders(utterances: Sequence[Utterance], path: str) -> list[Utterance]:
    """Return the utterances, with the gender filled in from the file where it is unknown.

    Raises `FedsimError` if the file cannot be read, if no utterance has a speaker, or if the file
    lacks a speaker.
    """
    known = read_genders(path)
    if utterances and all(u.speaker is None for u in utterances):
        raise FedsimError(
            "corpus.speakers lists speakers, but the corpus has no column for them; map it under "
            "corpus.columns.speaker"
        )
    filled = []
    for u in utterances:
        if u.gender is None and u.speaker is not None:
            who = composed(u.speaker)
            if who not in known:
                raise FedsimError(
                    f"corpus.speakers: {path} does not list speaker {u.speaker!r} of the corpus; "
                    f"add a line, or give another list"
                )
            u = replace(u, gender=known[who])
        filled.append(u)
    return filled


def read_genders(path: str) -> dict[str, str | None]:
    """Return speaker -> gender ("female" and "male" also where the file says F and M).

    It is None where the file says that it is not known.
    """
    try:
        lines = read_text(Path(path), MAX_LIST).splitlines()
    except FedsimError as error:
        raise FedsimError(f"corpus.speakers: {error}") from None
    first = next((line for line in lines if line.strip() and not line.startswith(";")), "")
    pairs = _piped(lines, path) if "|" in first else _table(path)
    genders: dict[str, str | None] = {}
    for line, speaker, word in pairs:
        speaker = composed(speaker)
        gender = gender_of_word(word) if word else None
        if not speaker or not word:
            raise FedsimError(
                f"{path}:{line}: the line has no {COLUMNS[bool(speaker)]}; add one, or remove it"
            )
        if genders.setdefault(speaker, gender) != gender:
            raise FedsimError(
                f"{path}:{line}: speaker {speaker!r} is {gender} here and {genders[speaker]} "
                f"above; remove one of the lines"
            )
    return genders


def _piped(lines: Iterable[str], path: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith(";"):
            continue
        speaker, *rest = (part.strip() for part in line.split("|"))
        if not rest:
            raise FedsimError(f"{path}:{number}: {line!r} has no columns; write ID | SEX | SUBSET")
        yield number, speaker, rest[0]


def _table(path: str) -> Iterator[tuple[int, str, str]]:
    found, rows = csv_rows(Path(path))
    if not set(COLUMNS) <= set(found):
        raise FedsimError(
            f"{path} has the columns {', '.join(found) or 'none'}; name them {', '.join(COLUMNS)}"
        )
    for line, row in rows:
        speaker, gender = (row.get(column, "").strip() for column in COLUMNS)
        yield line, speaker, gender
