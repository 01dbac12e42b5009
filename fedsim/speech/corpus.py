"""Corpora: where clips come from, grouped into clients, split into tuning and test clips.

Opening a corpus reads its metadata only; audio is read, or synthesized, when a client works with
it. A tuning clip has no text that could be read: its `Utterance` is stripped of it.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.base.seeds import client_rng
from fedsim.errors import AudioError, FedsimError, nearest
from fedsim.registry import Registry
from fedsim.speech.audio import clip_seconds, read_clip
from fedsim.speech.speakers import fill_genders

if TYPE_CHECKING:
    from fedsim.scenario.schema import ClientSettings, CorpusSettings
    from fedsim.speech.voices import Take

GROUPS = ("speaker", "gender", "language")
FIELDS = ("audio", "text", *GROUPS)


@dataclass(frozen=True)
class Utterance:
    """One clip and what is known of it.

    `source` is a path, a place in a `datasets` table, or what a synthetic speaker is to say.
    """

    key: str
    source: Path | tuple[Any, int] | Take
    text: str | None = None
    speaker: str | None = None
    gender: str | None = None
    language: str | None = None


@dataclass(frozen=True)
class ClientData:
    """One client's clips: `tuning` (unlabelled) and `test` (held out); no clip is in both."""

    key: str
    tuning: tuple[Utterance, ...]
    test: tuple[Utterance, ...]
    language: str | None = None


class Clients(Mapping[str, ClientData]):
    """Clients by key, each made when it is asked for: thousands cost no more memory than one."""

    def __init__(self, keys: Sequence[str], make: Callable[[str], ClientData]) -> None:
        self._keys = dict.fromkeys(keys)
        self._make = make

    def __getitem__(self, key: str) -> ClientData:
        if key not in self._keys:
            raise KeyError(key)
        return self._make(key)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def restrict(self, keys: Sequence[str]) -> Clients:
        """Return the clients with these keys only, in this order."""
        return Clients(keys, self._make)


CORPORA: Registry[Callable[[CorpusSettings, int], Clients]] = Registry("corpus")
"""kind -> f(settings, seed) -> the clients of the corpus, keys in sorted order.

What a client gets depends on the settings, the seed and its key, never on the other clients."""


@CORPORA.register("folder")
def open_folder(corpus: CorpusSettings, seed: int) -> Clients:
    """A local folder in the AudioFolder layout: audio files and a metadata.csv."""
    return _grouped(_read_folder(corpus), corpus, seed)


@CORPORA.register("hub")
def open_hub(corpus: CorpusSettings, seed: int) -> Clients:
    """A data set that `datasets.load_dataset` finds: a hub id, or a folder of parquet files."""
    from fedsim.speech.hub import read_hub

    return _grouped(read_hub(corpus), corpus, seed)


@CORPORA.register("voices")
def open_voices(corpus: CorpusSettings, seed: int) -> Clients:
    """Synthetic speakers, as many as asked for; needs the extra fedsim-speech[voices]."""
    from fedsim.speech.voices.population import open_population

    return open_population(corpus, seed)


def _read_folder(corpus: CorpusSettings) -> list[Utterance]:
    """Return every utterance of a folder, in the order of its metadata.csv."""
    root = Path(str(corpus.path))
    table = root / "metadata.csv"
    if not root.is_dir():
        raise FedsimError(f"corpus.path {root} is no folder; check the path")
    if not table.is_file():
        raise FedsimError(
            f"corpus {root} has no metadata.csv; write one with the columns file_name and any of "
            f"text, {', '.join(GROUPS)}"
        )
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FedsimError(f"{table} cannot be read as UTF-8 CSV: {error}") from error
    names = _columns(corpus, columns, {"audio": "file_name"}, str(table))
    utterances, seen = [], set()
    for line, row in rows:
        key = row[names["audio"]]
        if not key:
            raise FedsimError(f"{table}:{line}: the row has no file_name")
        if key in seen:
            raise FedsimError(f"{table}:{line}: {key!r} is listed twice; remove one of the rows")
        seen.add(key)
        fields = {f: (row[c] or "").strip() or None for f, c in names.items() if f != "audio"}
        utterances.append(Utterance(key, root / key, **fields))
    return utterances


def open_clients(corpus: CorpusSettings, clients: ClientSettings, seed: int) -> Clients:
    """Return the clients of a scenario, by key in sorted order: groups of the corpus, each split.

    `clients` has `select` (keys, or None for all), `min_clips` and `limit`. A client with too few
    clips keeps what it has: `require_clips` says so when it takes part. Raises `FedsimError` for a
    corpus that cannot be grouped, for a selected client that it does not hold, and when nobody has
    `min_clips`.
    """
    found = CORPORA[corpus.kind](corpus, seed)
    keys = list(found)
    if clients.select is not None:
        for key in clients.select:
            if key not in found:
                raise FedsimError(
                    f"clients.select names {key!r}, but the corpus has no such {corpus.group_by}: "
                    f"{nearest(key, found)}"
                )
        keys = sorted(clients.select)
    if clients.min_clips:
        keys = [k for k in keys if _clips(found[k]) >= clients.min_clips]
        if not keys:
            raise FedsimError(
                f"no {corpus.group_by} has the {clients.min_clips} clips of clients.min_clips, of "
                f"which corpus.tuning_clips and corpus.test_clips take "
                f"{corpus.tuning_clips + corpus.test_clips} at most; lower clients.min_clips"
            )
    return found.restrict(keys[: clients.limit])


def _clips(client: ClientData) -> int:
    return len(client.tuning) + len(client.test)


def _grouped(utterances: list[Utterance], corpus: CorpusSettings, seed: int) -> Clients:
    """Return one client for each value of what the corpus is grouped by."""
    utterances = [u for u in utterances if u.text not in corpus.leave_out]
    if corpus.speakers is not None:
        utterances = fill_genders(utterances, corpus.speakers)
    groups: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        value = getattr(utterance, corpus.group_by)
        if value is not None:
            groups[value].append(utterance)
    if not groups:
        listed = "give corpus.speakers, " if corpus.group_by == "gender" else ""
        raise FedsimError(
            f"corpus {corpus.path} names no {corpus.group_by} of any clip; add a column "
            f"{corpus.group_by!r}, map one under corpus.columns, {listed}or choose another "
            f"corpus.group_by"
        )
    return Clients(sorted(groups), lambda key: _split(corpus, key, groups[key], seed))


def _split(corpus: CorpusSettings, key: str, utterances: list[Utterance], seed: int) -> ClientData:
    if corpus.max_seconds is not None:
        utterances = [u for u in utterances if _seconds(u) <= corpus.max_seconds]
    order = client_rng(seed, key, "split").permutation(len(utterances))
    test = sorted(order[: corpus.test_clips])
    tuning = sorted(order[corpus.test_clips : corpus.test_clips + corpus.tuning_clips])
    spoken = {u.language for u in utterances}
    return ClientData(
        key,
        tuple(replace(utterances[i], text=None) for i in tuning),
        tuple(utterances[i] for i in test),
        spoken.pop() if len(spoken) == 1 else None,
    )


def require_clips(client: ClientData, corpus: CorpusSettings) -> None:
    """Raise `FedsimError` when a client has no tuning clips, no test clips or a test clip no
    text."""
    total = _clips(client)
    if not client.tuning or not client.test:
        which = "tuning" if not client.tuning else "test"
        raise FedsimError(
            f"client {client.key!r} has no {which} clips: the corpus holds {total} of its clips "
            f"and corpus.test_clips takes {corpus.test_clips} first; lower it or leave the client "
            f"out"
        )
    silent = next((u for u in client.test if not u.text), None)
    if silent is not None:
        raise FedsimError(
            f"client {client.key!r}: test clip {silent.key} has no text to compare with; fill in "
            f"its text or remove the clip"
        )


def read_utterance(utterance: Utterance, *, convert: bool = False) -> np.ndarray:
    """Return an utterance's clip, float32 (samples,) at 16 kHz; raises `AudioError`."""
    if isinstance(utterance.source, Path | tuple):
        source, name = _audio(utterance.source, utterance.key)
        return read_clip(source, name, convert=convert)
    from fedsim.speech.voices import render

    return render(utterance.source)


def _seconds(utterance: Utterance) -> float:
    """Return a clip's length; of one that cannot be read 0, so that its client is told when it
    works."""
    assert isinstance(utterance.source, Path | tuple)  # a voice's clip has no length before it is
    source, _ = _audio(utterance.source, utterance.key)
    try:
        return clip_seconds(source)
    except AudioError:
        return 0.0


def _audio(source: Path | tuple[Any, int], key: str) -> tuple[Path | bytes, str]:
    """Return where a clip's samples are, and what an error calls it."""
    if isinstance(source, Path):
        return source, str(source)
    table, row = source
    audio = table[row]["audio"]
    if audio["bytes"] is not None:
        return audio["bytes"], audio["path"] or key
    return Path(audio["path"]), audio["path"]


def _columns(
    corpus: CorpusSettings, present: Sequence[str], renamed: Mapping[str, str], where: str
) -> dict[str, str]:
    """Return our name -> column, for every column that is there; the audio column must be."""
    names = {}
    for field in FIELDS:
        column = corpus.columns.get(field, renamed.get(field, field))
        if column in present:
            names[field] = column
        elif field in corpus.columns or field == "audio":
            raise FedsimError(
                f"{where} has no column {column!r} for {field}: {nearest(column, present)}; map it "
                f"under corpus.columns"
            )
    return names
