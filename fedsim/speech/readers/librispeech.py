"""LibriSpeech as its archives unpack (openslr.org/12).

`PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE.flac`, one `SPEAKER-CHAPTER.trans.txt` per chapter
with lines of `ID TEXT`, and SPEAKERS.TXT beside the parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fedsim.errors import FedsimError, nearest
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.audio import AUDIO_SUFFIXES
from fedsim.speech.readers.base import Recordings, Row, folders_in, require_folder, utterances_of
from fedsim.speech.speakers import read_genders
from fedsim.speech.tables import word_pairs

_PARTS = re.compile(r"(train|dev|test)-(clean|other)(-\d+)?")
"""The parts of LibriSpeech itself, which is English; others may copy its layout."""
COLUMNS = ("file", "id", "text", "speaker", "speaker_id", "chapter_id", "gender", "language")
"""The hub's names of columns are among them, so that one scenario serves both."""


def is_librispeech(path: Path) -> bool:
    """Return whether a folder is a part of LibriSpeech, or holds parts."""
    return _is_part(path) or any(map(_is_part, folders_in(path).values()))


def read_librispeech(corpus: CorpusSettings) -> Recordings:
    """Return the utterances of a part, by speaker, chapter and number.

    The genders are those of SPEAKERS.TXT, if it lies in the folder or one of the two above.

    Raises `FedsimError` if there is no such part, for an id that belongs to another chapter, or
    for an unreadable file.
    """
    root = require_folder(corpus)
    part = _part(corpus, root)
    speakers = _speakers(part)
    genders = read_genders(str(speakers)) if speakers else {}
    language = "en" if _PARTS.fullmatch(part.name) else None
    texts = [text for chapter in _chapters(part) for text in sorted(chapter.glob("*.trans.txt"))]
    rows = (row for text in texts for row in _rows(text, genders, language))
    utterances, notes = utterances_of(corpus, rows, COLUMNS, {}, str(part))
    if speakers is None and corpus.speakers is None:
        notes += ("SPEAKERS.TXT lies neither beside the part nor above, so no gender is known",)
    tables = (*texts, speakers) if speakers else texts
    return Recordings(utterances, tuple(tables), notes, beside=part)


def _rows(table: Path, genders: dict[str, str | None], language: str | None) -> Iterator[Row]:
    chapter = table.parent
    files = {f.stem: f for f in sorted(chapter.iterdir()) if f.suffix.lower() in AUDIO_SUFFIXES}
    speaker, number = chapter.parent.name, chapter.name
    for line, key, text in word_pairs(table):
        if not key.startswith(f"{speaker}-{number}-"):
            raise FedsimError(
                f"{table}:{line}: {key!r} is no id of chapter {speaker}-{number}; correct it"
            )
        values = {
            **{"file": key, "id": key, "text": text, "language": language},
            **{"speaker": speaker, "speaker_id": speaker, "chapter_id": number},
            "gender": genders.get(speaker),
        }
        yield Row(f"{table}:{line}", key, files.get(key, chapter / f"{key}.flac"), values)


def _is_part(folder: Path) -> bool:
    return next(_chapters(folder), None) is not None


def _chapters(part: Path) -> Iterator[Path]:
    """Yield the chapters of a part, by the numbers of their speakers."""
    for speaker in sorted(folders_in(part).values(), key=lambda f: (len(f.name), f.name)):
        for name, chapter in folders_in(speaker).items():
            if (chapter / f"{speaker.name}-{name}.trans.txt").is_file():
                yield chapter


def _part(corpus: CorpusSettings, root: Path) -> Path:
    """Return the folder of the part that split and config name; the only one needs no name.

    Split `test` with config `clean` is test-clean, as `train.100` with `clean` is train-clean-100.
    """
    if _is_part(root):
        return root
    parts = {name: folder for name, folder in folders_in(root).items() if _is_part(folder)}
    if corpus.split in parts:
        return parts[corpus.split]
    head, *rest = re.split(r"[.-]", corpus.split)
    if isinstance(corpus.config, str):
        wanted = "-".join([head, corpus.config, *(r for r in rest if r != corpus.config)])
        if wanted in parts:
            return parts[wanted]
    elif len(parts) == 1:
        return next(iter(parts.values()))
    asked = f"{corpus.split!r}" + (f" with config {corpus.config!r}" if corpus.config else "")
    raise FedsimError(
        f"corpus.split {asked} is no part of {root}: {nearest(corpus.split, parts)}; set"
        f" corpus.split to a part, or name its folder in corpus.path"
    )


def _speakers(part: Path) -> Path | None:
    places = (folder / "SPEAKERS.TXT" for folder in (part, part.parent, part.parent.parent))
    return next((place for place in places if place.is_file()), None)
