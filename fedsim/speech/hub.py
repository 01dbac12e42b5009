"""Utterances of data sets that `datasets` loads, from the hub or a folder of parquet files.

One configuration of a data set is one table. Where configurations are languages (FLEURS), several
are read and concatenated, each labelled with its language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError, nearest
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.clips import FIELDS, Clients, Utterance
from fedsim.speech.grouping import grouped


def open_hub(corpus: CorpusSettings, seed: int) -> Clients:
    """Return the clients of a data set; raises `FedsimError` as `read_hub` does."""
    return grouped(read_hub(corpus), corpus, seed)


def read_hub(corpus: CorpusSettings) -> list[Utterance]:
    """Return every utterance of a data set in order, one configuration after the other.

    Raises `FedsimError` if the data set, a configuration or the split cannot be loaded, or if a
    column is missing or of another type.
    """
    import datasets

    datasets.utils.logging.disable_progress_bar()
    utterances: list[Utterance] = []
    for language, config in _configs(corpus):
        where = f"data set {corpus.path!r}" + (f", config {config!r}" if config else "")
        try:
            table = _load(str(corpus.path), config, corpus.split)
        except Exception as error:  # each data set builder raises its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FedsimError(
                f"{where} cannot be loaded: {reason}; check corpus.path, corpus.config, "
                f"corpus.split and the network"
            ) from error
        prefix = f"{config}/" if isinstance(corpus.config, tuple | dict) else ""
        utterances += _utterances(corpus, table, where, prefix, language)
    return utterances


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
    elif "language" in values:
        codes = _codes(values["language"])
        values["language"] = [codes.get(word, word) for word in values["language"]]
    audio = table.select_columns([names["audio"]])
    audio = audio.cast_column(names["audio"], datasets.Audio(decode=False))
    if names["audio"] != "audio":
        audio = audio.rename_column(names["audio"], "audio")
    for i in range(len(table)):
        yield Utterance(
            f"{prefix}{i:07d}", (audio, i), **{field: v[i] for field, v in values.items()}
        )


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


def _codes(words: list[str | None]) -> dict[str | None, str]:
    """Return word -> ISO code, for the words that are English names of languages."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return {
        w: TO_LANGUAGE_CODE[w.lower()] for w in set(words) if w and w.lower() in TO_LANGUAGE_CODE
    }
