"""Corpora: where clips come from, grouped into clients, split into tuning and test clips.

Opening a corpus reads its metadata only; audio is read when a client works with it. A tuning clip
has no text that could be read: its `Utterance` is stripped of it.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.errors import AudioError, FedsimError, nearest
from fedsim.registry import Registry
from fedsim.speech.audio import clip_seconds, read_clip

if TYPE_CHECKING:
    from fedsim.scenario.schema import ClientSettings, CorpusSettings

GROUPS = ("speaker", "gender", "language")
FIELDS = ("audio", "text", *GROUPS)


@dataclass(frozen=True)
class Utterance:
    """One clip and what is known of it. `source` is a path, or a place in a `datasets` table."""

    key: str
    source: Path | tuple[Any, int]
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


CORPORA: Registry[Callable[[CorpusSettings], list[Utterance]]] = Registry("corpus")
"""kind -> f(settings) -> every utterance, in a stable order."""


@CORPORA.register("folder")
def open_folder(corpus: CorpusSettings) -> list[Utterance]:
    """A local folder in the AudioFolder layout: audio files and a metadata.csv."""
    root = Path(corpus.path)
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


@CORPORA.register("hub")
def open_hub(corpus: CorpusSettings) -> list[Utterance]:
    """A data set that `datasets.load_dataset` finds: a hub id, or a folder of parquet files."""
    import datasets

    datasets.utils.logging.disable_progress_bar()
    try:
        table = datasets.load_dataset(corpus.path, corpus.config, split=corpus.split)
    except Exception as error:  # each data set script and builder raises its own
        raise FedsimError(
            f"data set {corpus.path!r} cannot be loaded: {str(error).strip().splitlines()[0]}; "
            f"check corpus.path, corpus.config, corpus.split and the network"
        ) from error
    names = _columns(corpus, table.column_names, {}, f"data set {corpus.path!r}")
    table = table.cast_column(names["audio"], datasets.Audio(decode=False))
    values: dict[str, Sequence[Any]] = {}
    for field in names.keys() - {"audio"}:
        feature = table.features[names[field]]
        values[field] = [_cell(feature, value) for value in table[names[field]]]
    audio = table.select_columns([names["audio"]])
    if names["audio"] != "audio":
        audio = audio.rename_column(names["audio"], "audio")
    return [
        Utterance(f"{i:07d}", (audio, i), **{f: v[i] for f, v in values.items()})
        for i in range(len(table))
    ]


def _cell(feature: Any, value: Any) -> str | None:
    """Return a cell as text: a class by its name; None where there is no class (-1) or no text."""
    if value is None:
        return None
    if hasattr(feature, "int2str"):
        return feature.int2str(value) if value >= 0 else None
    return str(value).strip() or None


def open_clients(
    corpus: CorpusSettings, clients: ClientSettings, seed: int
) -> dict[str, ClientData]:
    """Return the clients of a scenario, by key in sorted order: groups of the corpus, each split.

    `clients` has `select` (keys, or None for all) and `limit`. The split of a client depends on
    `seed`, its key and its own clips only. A client with too few clips keeps what it has:
    `require_clips` says so when it takes part. Raises `FedsimError` for a corpus that cannot be
    grouped, and for a selected client that it does not hold.
    """
    utterances = CORPORA[corpus.kind](corpus)
    groups: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        value = getattr(utterance, corpus.group_by)
        if value is not None:
            groups[value].append(utterance)
    if not groups:
        raise FedsimError(
            f"corpus {corpus.path} names no {corpus.group_by} of any clip; add a column "
            f"{corpus.group_by!r}, map one under corpus.columns, or choose another corpus.group_by"
        )
    keys = sorted(groups)
    if clients.select is not None:
        for key in clients.select:
            if key not in groups:
                raise FedsimError(
                    f"clients.select names {key!r}, but the corpus has no such {corpus.group_by}: "
                    f"{nearest(key, groups)}"
                )
        keys = sorted(clients.select)
    return {key: _split(corpus, key, groups[key], seed) for key in keys[: clients.limit]}


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


def client_rng(seed: int, client: str, purpose: str) -> np.random.Generator:
    """Return the generator for one purpose of one client: the same on any machine and engine."""
    words = [
        int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
        for text in (client, purpose)
    ]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))


def require_clips(client: ClientData, corpus: CorpusSettings) -> None:
    """Raise `FedsimError` when a client has no tuning clips, no test clips or a test clip no
    text."""
    total = len(client.tuning) + len(client.test)
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
    source, name = _audio(utterance)
    return read_clip(source, name, convert=convert)


def _seconds(utterance: Utterance) -> float:
    """Return a clip's length; of one that cannot be read 0, so that its client is told when it
    works."""
    source, _ = _audio(utterance)
    try:
        return clip_seconds(source)
    except AudioError:
        return 0.0


def _audio(utterance: Utterance) -> tuple[Path | bytes, str]:
    """Return where a clip's samples are, and what an error calls it."""
    if isinstance(utterance.source, Path):
        return utterance.source, str(utterance.source)
    table, row = utterance.source
    audio = table[row]["audio"]
    if audio["bytes"] is not None:
        return audio["bytes"], audio["path"] or utterance.key
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
