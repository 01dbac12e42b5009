"""The key of a result: a hash of everything that it depends on.

The key covers every setting of the schema except the few named here, so a new setting is covered
without further work, and the contents of the files of the model and the corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError
from fedsim.results.folder import RELEVANT_VERSIONS, versions
from fedsim.scenario.methods import FULL_PRECISION, MethodSettings
from fedsim.scenario.schema import Scenario
from fedsim.scenario.vocabulary import LANGUAGE

NOT_IN_KEY = (
    *("name", "description"),
    *("methods", "matrix"),  # each method has a key of its own
    *("engine", "save_models"),  # but `engine.threads`, which changes last digits, is in the key
    *("clock", "fleet"),  # runs with a fleet share no results
)
"""Sections and keys of a scenario on which no result depends."""
NOT_READ_BY_FULL_PRECISION = (
    *("quantization", "corpus.tuning_clips"),
    *("clients.budget_mb", "clients.bit_depths"),
)
"""Dotted keys on which the results of the full-precision model do not depend."""
NOT_READ_WITHOUT_PROFILES = ("quantization.sensitivity", "privacy")
"""Dotted keys on which plans of allocators that read no layer profile do not depend."""


class ResultKeys:
    """Computes keys; every file is read only once."""

    def __init__(self) -> None:
        self._contents: dict[str, str] = {}

    def key(self, scenario: Scenario, method: MethodSettings) -> str:
        """Return a hash of everything that a method's results depend on."""
        settings = scenario.model_dump(mode="json", exclude=set(NOT_IN_KEY))
        settings["engine"] = {"threads": scenario.engine.threads}
        settings["privacy"] = scenario.privacy.relevant()
        settings["method"] = method.model_dump(mode="json")
        installed = versions()
        settings["versions"] = {name: installed[name] for name in RELEVANT_VERSIONS}
        settings["files"] = [self._content(place) for place in _places(scenario)]
        if not method.reads_profile:
            _drop(settings, NOT_READ_WITHOUT_PROFILES)
        if method.allocation == FULL_PRECISION:
            _drop(settings, NOT_READ_BY_FULL_PRECISION)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def _content(self, place: str | None) -> str:
        """Return a hash of a local file or folder; empty for anything that is not local."""
        if place is None or not Path(place).exists():
            return ""
        if place not in self._contents:
            digest = hashlib.sha256()
            for file in _files(Path(place)):
                digest.update(f"{file.relative_to(place).as_posix()}\0".encode())
                try:
                    with file.open("rb") as data:
                        digest.update(hashlib.file_digest(data, "sha256").digest())
                except OSError as error:
                    raise FedsimError(
                        f"{file} cannot be read ({error.strerror}), and results depend on the files"
                        f" of {place}: make it readable or remove it"
                    ) from error
            self._contents[place] = digest.hexdigest()
        return self._contents[place]


def _places(scenario: Scenario) -> tuple[str | None, ...]:
    """Return the files and folders on which a scenario's results depend."""
    corpus, people = scenario.corpus, scenario.corpus.population
    sentences = people.sentences if people else None
    public = scenario.quantization.public_clips
    of_public = (public.path, public.speakers) if public else ()
    words = scenario.model.vocabulary and scenario.model.vocabulary.words_from
    texts = sorted(glob(words.replace(LANGUAGE, "*"))) if words else ()
    return scenario.model.id, corpus.path, corpus.speakers, sentences, *of_public, *texts


def _files(place: Path) -> Iterator[Path]:
    """Yield the file itself, or all files below a folder, in the same order on every system."""
    if place.is_file():
        yield place
        return
    for folder, folders, names in os.walk(place, followlinks=True):
        folders.sort()
        yield from (Path(folder) / name for name in sorted(names))


def _drop(settings: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        section, _, name = key.partition(".")
        if name:
            settings[section].pop(name, None)
        else:
            settings.pop(section, None)
