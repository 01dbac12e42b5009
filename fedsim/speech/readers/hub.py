"""Utterances of data sets that `datasets` loads, from the hub or a folder of parquet files.

One configuration of a data set is one table. Where configurations are languages (FLEURS), several
are read and concatenated, each labelled with its language.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError, nearest
from fedsim.scenario.corpus import CorpusSettings
from fedsim.scenario.readers import READERS
from fedsim.speech.clips import FIELDS, Utterance
from fedsim.speech.readers.base import Recordings
from fedsim.speech.readers.detect import detect

_DATA = frozenset((".parquet", ".arrow"))
_MAX_LOOKED_AT = 2_000
"""Files of a folder among which one of a data set is looked for."""


def is_hub(path: Path) -> bool:
    """Return whether a folder holds the files of a data set rather than recordings."""
    if not path.is_dir():
        return False
    looked_at = 0
    for _, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if any(os.path.splitext(name)[1] in _DATA for name in names):
            return True
        looked_at += len(names) + len(folders)
        if looked_at > _MAX_LOOKED_AT:
            return False
    return False


def read_hub(corpus: CorpusSettings) -> Recordings:
    """Return every utterance of a data set in order, one configuration after the other.

    A folder of recordings in a layout that another reader knows is read by that one: `datasets`
    would need torchcodec for it.

    Raises `FedsimError` if the data set, a configuration or the split cannot be loaded, or if a
    column is missing or of another type.
    """
    root = Path(str(corpus.path))
    if root.is_dir() and not is_hub(root) and (kind := _layout(root)):
        return _read_layout(corpus, kind)
    import datasets

    datasets.utils.logging.disable_progress_bar()
    utterances: list[Utterance] = []
    for language, config in _configs(corpus):
        where = f"data set {corpus.path!r}" + (f", config {config!r}" if config else "")
        try:
            table = _load(str(corpus.path), config, corpus.split)
        except Exception as error:  # each data set builder raises its own
            raise FedsimError(
                f"{where} cannot be loaded: {_root_cause(error)}; {_advice(root)}"
            ) from error
        prefix = f"{config}/" if isinstance(corpus.config, tuple | dict) else ""
        utterances += _utterances(corpus, table, where, prefix, language)
    return Recordings(utterances)


def _layout(root: Path) -> str | None:
    """Return the layout of a folder of recordings; None if it is none, or not clearly one."""
    try:
        return detect(root)
    except FedsimError:
        return None


def _read_layout(corpus: CorpusSettings, kind: str) -> Recordings:
    columns = {f: c for f, c in corpus.columns.items() if (f, c) != ("audio", "audio")}
    changed = corpus.model_copy(update={"kind": kind, "columns": columns})
    read = READERS[kind].read
    if read is None:
        raise FedsimError(
            f"corpus.path {corpus.path} has the layout {kind!r}; set corpus.kind: {kind}"
        )
    found: Recordings = read(changed)
    # `datasets` takes a folder's files by the name of a split for that split.
    first = {u.key.split("/")[0] for u in found.utterances}
    if kind == "folder" and corpus.split in first and len(first) > 1:
        chosen = [u for u in found.utterances if u.key.split("/")[0] == corpus.split]
        found = replace(found, utterances=chosen, beside=None)
    note = f"kind hub on a folder in the layout {kind!r}: read as such, without `datasets`"
    return replace(found, notes=(note, *found.notes))


def _root_cause(error: BaseException) -> str:
    """Return the first line of the error that a chain of exceptions began with.

    `datasets` says only that an error occurred, whatever it was.
    """
    seen = [error]
    while (cause := error.__cause__ or error.__context__) and cause not in seen:
        seen.append(cause)
        error = cause
    texts = [(str(e).strip() or type(e).__name__).splitlines()[0] for e in seen]
    vague = "error occurred while generating the dataset"
    return texts[-1] if vague in texts[0] else texts[0]


def _advice(root: Path) -> str:
    if root.exists():
        return "check corpus.path, corpus.config and corpus.split, or set another corpus.kind"
    return (
        "check corpus.path, corpus.config, corpus.split and the network; there is no folder of"
        " this name here"
    )


def _configs(corpus: CorpusSettings) -> list[tuple[str | None, str | None]]:
    """Return language (or None) and name of each requested configuration."""
    config = corpus.config
    if isinstance(config, dict):
        return list(config.items())
    return [(None, name) for name in (config if isinstance(config, tuple) else (config,))]


def _load(path: str, config: str | None, split: str) -> Any:
    """Return one split as a table.

    `datasets` downloads every split of a configuration: for LibriSpeech 30 GB of training clips
    beside 0.3 GB of test clips. So the other splits are removed from its list of files. The result
    has a cache folder of its own, so that it is not mistaken for the whole data set.
    """
    import datasets

    if not re.fullmatch(r"\w[\w.]*", split):  # such as test[:100]
        return datasets.load_dataset(path, config, split=split)
    cache = Path(datasets.config.HF_DATASETS_CACHE) / f"only-{split}"
    builder = datasets.load_dataset_builder(path, config, cache_dir=str(cache))
    files = builder.config.data_files
    if files:
        if split not in files:
            raise ValueError(f"there is no split {split!r}: {nearest(split, map(str, files))}")
        builder.config.data_files = type(files)({split: files[split]})
        builder.info.size_in_bytes = builder.info.download_size = None  # they are of all splits
    builder.download_and_prepare(verification_mode="no_checks")  # it would miss the other splits
    return builder.as_dataset(split=split)


def _utterances(
    corpus: CorpusSettings, table: Any, where: str, prefix: str, language: str | None
) -> Iterator[Utterance]:
    import datasets

    names = _names(corpus, table, where, language)
    values = {
        field: [_cell(table.features[column], value) for value in table[column]]
        for field, column in names.items()
        if field != "audio"
    }
    if language is not None:
        values["language"] = [language] * len(table)
    audio = table.select_columns([names["audio"]])
    audio = audio.cast_column(names["audio"], datasets.Audio(decode=False))
    if names["audio"] != "audio":
        audio = audio.rename_column(names["audio"], "audio")
    for i in range(len(table)):
        fields: dict[str, Any] = {field: v[i] for field, v in values.items()}
        yield Utterance(f"{prefix}{i:07d}", (audio, i), **fields)


def _names(corpus: CorpusSettings, table: Any, where: str, language: str | None) -> dict[str, str]:
    """Return our name -> column of every column that is present, after checking its type."""
    wanted = {"audio": "audio", **corpus.columns}
    present = table.column_names
    for field, column in wanted.items():
        if column not in present:
            raise FedsimError(
                f"{where} has no column {column!r} for {field}: expected "
                f"{', '.join(wanted.values())}, found {', '.join(present)}; map what differs under "
                f"corpus.columns"
            )
    names = {f: c for f in FIELDS if (c := wanted.get(f, f)) in present}
    if language is not None:
        names.pop("language", None)
    for field, column in names.items():
        feature = table.features[column]
        if not (_is_audio(feature) if field == "audio" else _is_text(feature)):
            wanted_type = "Audio" if field == "audio" else "a text, a class or a whole number"
            raise FedsimError(
                f"{where}: column {column!r} holds {feature}, and {field} must be {wanted_type}; "
                f"map another column under corpus.columns"
            )
    return names


def _is_audio(feature: Any) -> bool:
    """Return whether a column holds clips: Audio, or the bytes and path that it is stored as."""
    return type(feature).__name__ == "Audio" or (
        isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
    )


def _is_text(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return hasattr(feature, "int2str") or kind.endswith("string") or "int" in kind


def _cell(feature: Any, value: Any) -> str | None:
    """Return a cell as text, a class by its name; None for no class (-1) and for blank text."""
    if value is None:
        return None
    if hasattr(feature, "int2str"):
        return feature.int2str(value) if value >= 0 else None
    return str(value).strip() or None
