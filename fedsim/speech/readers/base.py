"""What every reader gives, and how rows of a layout become utterances.

A reader says which columns its layout has and gives one `Row` for each clip; `corpus.columns` maps
them for all layouts alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.base.text import composed, has_control
from fedsim.base.units import count_words
from fedsim.errors import FedsimError, nearest, quoted
from fedsim.scenario.corpus import CorpusSettings
from fedsim.scenario.readers import READERS
from fedsim.speech.audio import AUDIO_SUFFIXES
from fedsim.speech.clips import Utterance
from fedsim.speech.grouping import named_columns

MAX_NAME = 4_096
"""Characters of a file's name in a table."""


@dataclass(frozen=True)
class Row:
    """One clip of a layout."""

    where: str
    """File and line, for errors."""
    key: str
    """Its name in the corpus, as its layout writes it."""
    file: Path
    values: Mapping[str, str | None]
    """Column -> cell."""
    begin: float = 0.0
    end: float | None = None


@dataclass(frozen=True)
class Recordings:
    """The utterances of a corpus, and what else is known about it without reading audio."""

    utterances: list[Utterance]
    tables: tuple[Path, ...] = ()
    """Files that were read beside the recordings; results depend on them."""
    notes: tuple[str, ...] = ()
    """What `fedsim validate` says about the corpus, one sentence each."""
    seconds: Mapping[str, float] | None = None
    """Length of each clip by its key, where the tables say it."""
    beside: Path | None = None
    """Folder all of whose recordings should be among the utterances."""


def utterances_of(
    corpus: CorpusSettings,
    rows: Iterable[Row],
    columns: Sequence[str],
    renamed: Mapping[str, str],
    where: str,
    *,
    audio: str = "file",
    refuse_repeats: bool = False,
) -> tuple[list[Utterance], tuple[str, ...]]:
    """Return the utterances of a layout's rows, and sentences about rows that were not taken.

    Args:
        corpus: `columns` is read.
        rows: in the order of the layout.
        columns: that the layout has.
        renamed: our name -> the layout's, where they differ.
        where: file or folder, for errors.
        audio: column that names the recordings.
        refuse_repeats: refuse also a row that is equal to one above; else it counts once.

    Raises:
        FedsimError: for a column that is missing, a name that is none, times that are none, and a
            clip that is listed twice.
    """
    names = named_columns(corpus, columns, {"audio": audio, **renamed}, where)
    if names.pop("audio") != audio:
        raise FedsimError(
            f"corpus.columns.audio is {corpus.columns['audio']!r}, and the recordings of {where}"
            f" are named by {audio!r}; remove it"
        )
    utterances: list[Utterance] = []
    seen: dict[tuple[str, float, float | None], Utterance] = {}
    repeats: list[str] = []
    for row in rows:
        if not row.key or len(row.key) > MAX_NAME or has_control(row.key):
            raise FedsimError(f"{row.where}: {quoted(row.key)} is no name of a file; correct it")
        if row.begin < 0 or (row.end is not None and not row.begin < row.end):
            raise FedsimError(
                f"{row.where}: clip {quoted(row.key)} begins at {row.begin:g} s and ends at"
                f" {row.end or 0:g} s; correct the times"
            )
        fields = {f: (row.values.get(c) or "").strip() or None for f, c in names.items()}
        utterance = Utterance(row.key, row.file, **fields, begin=row.begin, end=row.end)
        place = composed(os.path.normpath(row.file)), row.begin, row.end
        other = seen.setdefault(place, utterance)
        if other is not utterance:
            if other == utterance and not refuse_repeats:
                repeats.append(row.where)
                continue
            above = "" if other.key == row.key else f", above as {quoted(other.key)}"
            raise FedsimError(
                f"{row.where}: {quoted(row.key)} is listed twice{above}; remove one of the rows"
            )
        utterances.append(utterance)
    if not repeats:
        return utterances, ()
    equal = count_words(len(repeats), "row")
    return utterances, (f"{equal} equal to one above left out, the first is {repeats[0]}",)


def parts_of(
    corpus: CorpusSettings,
    root: Path,
    is_language: Callable[[Path], bool],
    folders: Mapping[str, Path] | None = None,
) -> list[tuple[str, str | None, Path]]:
    """Return prefix of keys, language (or None) and folder of each language of a corpus.

    Args:
        corpus: `config` chooses; without it all languages are taken.
        root: a language itself, or the folder that holds them.
        is_language: whether a folder is that of a language.
        folders: by name, where they are not those in `root`.

    Raises `FedsimError` for a configuration that there is not.
    """
    config = corpus.config
    below = folders_in(root) if folders is None else folders
    found = {name: folder for name, folder in below.items() if is_language(folder)}
    if is_language(root):
        found = {root.name: root}
    pairs: list[tuple[str | None, str]]
    if isinstance(config, dict):
        pairs = [*config.items()]
    else:
        names = config if isinstance(config, tuple) else [config] if config else sorted(found)
        pairs = [(None, name) for name in names]
    for _, name in pairs:
        if name not in found:
            raise FedsimError(
                f"corpus.config: {root} has no language {name!r}: {nearest(name, found)}"
            )
    if not pairs:
        raise FedsimError(
            f"corpus.path {root} has not the layout {corpus.kind!r}: there is none of"
            f" {READERS[corpus.kind].sign}; set another corpus.kind, or auto"
        )
    several = len(pairs) > 1
    return [(f"{name}/" if several else "", language, found[name]) for language, name in pairs]


def placed(name: str, folder: Path, above: int = 3) -> Path:
    """Return the file that a table names; a relative name begins in its folder.

    Toolkits write names relative to the folder that they were started in: where there is no such
    file, it is looked for from the folders above, `above` of them. What is nowhere is as if it lay
    in the folder itself.
    """
    for start in (folder, *folder.absolute().parents[:above]):
        if (start / name).exists():
            return start / name
    return folder / name


def audio_below(root: Path) -> Iterable[Path]:
    """Yield the recordings below a folder, by the endings of their names; hidden ones are not."""
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES and not name.startswith("."):
                yield Path(folder) / name


def folders_in(root: Path) -> dict[str, Path]:
    """Return name -> folder of what lies in a folder, in order; hidden ones are not."""
    if not root.is_dir():
        return {}
    found = (f for f in root.iterdir() if not f.name.startswith(".") and f.is_dir())
    return {folder.name: folder for folder in sorted(found)}


def require_folder(corpus: CorpusSettings) -> Path:
    """Return the folder of a corpus; raises `FedsimError` if it is none."""
    root = Path(str(corpus.path))
    if not os.path.isdir(root):
        raise FedsimError(f"corpus.path {root} is not a folder; check the path")
    return root
