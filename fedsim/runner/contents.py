"""The contents of the files on which results depend, as hashes: of the model, the corpus, tables.

Sizes and times are no proof that a file is the same, so every byte is read; once for each
`Contents`, several files at a time.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from itertools import islice
from pathlib import Path

from fedsim.base.paths import BUNDLED_PREFIX, bundled_folder
from fedsim.errors import FedsimError
from fedsim.scenario.corpus import CorpusSettings
from fedsim.scenario.schema import Scenario
from fedsim.scenario.vocabulary import LANGUAGE
from fedsim.speech.readers import read_files

_THREADS = 4
_AT_ONCE = 256
"""Files in the hands of the threads: memory does not grow with their number."""


@dataclass(frozen=True)
class Chosen:
    """Files of a corpus on which results depend, where these are not all files below its path.

    Common Voice has a million clips beside the hundred that a split names; a manifest names
    recordings anywhere.
    """

    root: str
    files: tuple[str, ...]

    def __fspath__(self) -> str:
        return self.root


@dataclass(frozen=True)
class HubId:
    """A model or a data set of the hub, by its id."""

    id: str
    kind: str
    """"model" or "dataset"."""

    def __fspath__(self) -> str:
        return self.id

    def commit(self) -> str:
        """Return the commit that is loaded, in hexadecimal digits; empty if it cannot be found."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        small = "config.json" if self.kind == "model" else "README.md"
        try:  # loading reads this file too; without a network it comes from the cache
            found = Path(hf_hub_download(self.id, small, repo_type=self.kind))
        except (OSError, ValueError, HfHubHTTPError, HFValidationError):
            return ""  # whoever loads it explains what is wrong
        return found.parent.name


Place = str | Chosen | HubId
"""A file, a folder with all that is in it, chosen files, or what lies on the hub."""


class Contents:
    """Hashes of files and folders; every file is read only once.

    Nothing is read with `read=False`, for runs that nobody resumes.
    """

    def __init__(self, *, read: bool = True) -> None:
        self._read = read
        self._chosen: dict[str, Place | None] = {}
        self._files: dict[Place, tuple[tuple[str, bytes], ...]] = {}
        self._commits: dict[HubId, str] = {}

    def recordings(self, corpus: CorpusSettings) -> Place | None:
        """Return the files of a corpus on which results depend; its tables are read only once."""
        if not self._read:
            return corpus.path
        key = corpus.model_dump_json(include={"kind", "path", "config", "split", "columns"})
        if key not in self._chosen:
            self._chosen[key] = _recordings(corpus)
        return self._chosen[key]

    def digest(self, place: Place | None) -> str:
        """Return a hash of a local file or folder, the commit of what lies on the hub; empty where
        there is neither."""
        if isinstance(place, HubId):
            if self._read and place not in self._commits:
                self._commits[place] = place.commit()
            return self._commits.get(place, "")
        found = hashlib.sha256()
        for name, digest in (files := self.files(place)):
            found.update(f"{name}\0".encode("utf-8", "surrogateescape"))
            found.update(digest)
        return found.hexdigest() if files else ""

    def files(self, place: Place | None) -> tuple[tuple[str, bytes], ...]:
        """Return the path below a folder and the SHA-256 of every file in it; `.` for a file.

        Nothing for what is not local. Raises `FedsimError` if a file cannot be read.
        """
        if not self._read or place is None or isinstance(place, HubId):
            return ()
        if not Path(place).exists():
            return ()
        if place not in self._files:
            self._files[place] = tuple(_hashed(place))
        return self._files[place]


def places(scenario: Scenario, contents: Contents | None = None) -> dict[str, Place]:
    """Return the files and folders that a scenario names: dotted key -> path.

    A model or data set of the hub is among them. The texts that `words_from` names with
    `{language}` are named one by one. With `contents` each corpus is read only once.
    """
    vocabulary, fleet = scenario.model.vocabulary, scenario.fleet
    words = vocabulary.words_from if vocabulary else None
    model = scenario.model.id
    if model.startswith(BUNDLED_PREFIX):
        model = str(bundled_folder(model))
    found = {
        "model.id": model,
        **_corpus_places("corpus", scenario.corpus, contents),
        **_corpus_places("quantization.public_clips", scenario.quantization.public_clips, contents),
        "fleet.catalogue": fleet and fleet.catalogue,
        "fleet.trace": fleet and fleet.trace,
    }
    for text in sorted(glob(words.replace(LANGUAGE, "*"))) if words else ():
        found[f"model.vocabulary.words_from ({Path(text).name})"] = text
    return {key: _place(key, place) for key, place in found.items() if place}


def _place(key: str, place: Place) -> Place:
    """Return a place as an id of the hub if it can be one and is not a local file."""
    on_hub = key == "model.id" or key.endswith(".path")
    if not isinstance(place, str) or not on_hub or place.startswith((".", "/", "~")):
        return place
    if Path(place).exists():
        return place
    return HubId(place, "model" if key == "model.id" else "dataset")


def _corpus_places(
    key: str, corpus: CorpusSettings | None, contents: Contents | None
) -> dict[str, Place | None]:
    if corpus is None:
        return {}
    people = corpus.population
    return {
        f"{key}.path": contents.recordings(corpus) if contents else _recordings(corpus),
        f"{key}.speakers": corpus.speakers,
        f"{key}.population.sentences": people.sentences if people else None,
    }


def _recordings(corpus: CorpusSettings) -> Place | None:
    """Return the tables and recordings that are read of a corpus; its path if that is all of it."""
    if corpus.path is None or not Path(corpus.path).exists():
        return corpus.path
    try:
        files = read_files(corpus)
    except FedsimError:  # which is raised where the corpus is opened
        files = None
    return corpus.path if files is None else Chosen(corpus.path, tuple(map(str, files)))


def _hashed(place: Place) -> Iterator[tuple[str, bytes]]:
    if isinstance(place, Chosen):
        root = Path(place.root)
        files = iter([Path(file) for file in place.files])
    else:
        root = Path(place)
        files = _below(root)
    with ThreadPoolExecutor(_THREADS) as threads:  # hashing does not hold the interpreter
        while some := list(islice(files, _AT_ONCE)):
            digests = threads.map(lambda file: _sha256(file, root), some)
            for file, digest in zip(some, digests, strict=True):
                yield Path(os.path.relpath(file, root)).as_posix(), digest


def _sha256(file: Path, place: Path) -> bytes:
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # reading a pipe or a device might never end
            raise OSError(0, "it is not a regular file")
        with file.open("rb", buffering=0) as data:
            return hashlib.file_digest(data, "sha256").digest()
    except OSError as error:
        raise FedsimError(
            f"{file} cannot be read ({error.strerror}), and results depend on the files of {place}:"
            " make it readable or remove it"
        ) from error


def _below(place: Path) -> Iterator[Path]:
    """Yield the file itself, or all files below a folder, in the same order on every system."""
    if place.is_file():
        yield place
        return
    for folder, folders, names in os.walk(place, followlinks=True):
        folders.sort()
        yield from (Path(folder) / name for name in sorted(names))
