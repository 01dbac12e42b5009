"""NeMo manifests: one JSON object per line, with audio_filepath, offset, duration and text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError, nearest
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.readers.base import Recordings, Row, placed, utterances_of
from fedsim.speech.tables import as_seconds, as_text, first_object, jsonl_rows

_AUDIO = "audio_filepath"
_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_MAX_LOOKED_AT = 100


def is_nemo(path: Path) -> bool:
    """Return whether a file is a manifest, or a folder has one."""
    return bool(_manifests(path))


def read_nemo(corpus: CorpusSettings) -> Recordings:
    """Return the utterances of a manifest, in its order.

    A clip begins at `offset`, 0 if there is none, and lasts `duration`, as in NeMo itself.

    Raises `FedsimError` if there is no manifest, and for a line that is none.
    """
    table = _manifest(Path(str(corpus.path)), corpus.split)
    objects = list(jsonl_rows(table))
    columns = [*dict.fromkeys(key for _, row in objects for key in row)]
    renamed = {
        field: next((name for name in names if name in columns), field)
        for field, names in {
            "speaker": ("speaker", "speaker_id"),
            "language": ("lang", "source_lang", "language"),
        }.items()
    }
    rows = list(_rows(table, objects))
    utterances, notes = utterances_of(corpus, rows, columns, renamed, str(table), audio=_AUDIO)
    seconds = {row.key: row.end - row.begin for row in rows if row.end is not None}
    return Recordings(utterances, (table,), notes, seconds or None)


def _rows(table: Path, objects: list[tuple[int, dict[str, Any]]]) -> Iterator[Row]:
    for line, row in objects:
        where, name = f"{table}:{line}", row.get(_AUDIO)
        if not isinstance(name, str) or not name:
            raise FedsimError(f"{where}: the line has no {_AUDIO}; add it or remove the line")
        begin, end = 0.0, None
        if row.get("offset") is not None:
            begin = as_seconds(row["offset"], where, "offset")
        if row.get("duration") is not None:
            end = begin + as_seconds(row["duration"], where, "duration")
        key = f"{name}@{begin:g}" if row.get("offset") else name
        values = {k: as_text(v) for k, v in row.items()}
        yield Row(where, key, placed(name, table.parent, above=0), values, begin, end)


def _manifests(path: Path) -> dict[str, Path]:
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(f for f in path.iterdir() if f.name.endswith(_ENDINGS))
    else:
        files = []
    return {f.name: f for f in files[:_MAX_LOOKED_AT] if _AUDIO in first_object(f)}


def _manifest(path: Path, split: str) -> Path:
    found = _manifests(path)
    if path.is_file() and not found:
        raise FedsimError(f"{path}:1: the line has no {_AUDIO}; name a NeMo manifest")
    if not found:
        raise FedsimError(f"corpus.path {path} has no NeMo manifest; name one, such as test.json")
    wanted = [f"{stem}{ending}" for stem in (f"{split}_manifest", split) for ending in _ENDINGS]
    if len(found) == 1 and (path.is_file() or not _names_a_split(*found)):
        return next(iter(found.values()))
    name = next((name for name in wanted if name in found), None)
    if name is None:
        raise FedsimError(
            f"corpus.split is {split!r}, and there is no {split}_manifest.json or {split}.json in"
            f" {path}: {nearest(wanted[0], found)}"
        )
    return found[name]


def _names_a_split(name: str) -> bool:
    return name.split(".")[0].removesuffix("_manifest") in ("train", "dev", "validation", "test")
