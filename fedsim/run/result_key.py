"""The key of a result: a hash of everything that it depends on.

Whatever the schema holds is in the key, except the few settings named here; a setting that is added
is in it by itself. So are the contents of the model's and the corpus' files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsim.results.folder import RELEVANT_VERSIONS, versions
from fedsim.scenario.methods import FULL_PRECISION, MethodSettings
from fedsim.scenario.schema import Scenario

NOT_IN_KEY = (
    *("name", "description"),  # words
    *("methods", "matrix"),  # what is computed: each method has a key of its own
    *("engine", "save_models"),  # how, and what is kept; but `engine.threads` changes last digits
    *("clock", "fleet"),  # of a fleet nothing is shared
)
"""Sections and keys of a scenario that no result of a method depends on."""
NOT_READ_BY_FULL_PRECISION = (
    *("quantization", "corpus.tuning_clips"),
    *("clients.budget_mb", "clients.bit_depths"),
)
"""Dotted keys that the full-precision model does not depend on."""
NOT_READ_WITHOUT_PROFILES = ("quantization.sensitivity", "privacy")
"""Dotted keys that a plan does not depend on whose allocator reads no layer profile."""


class ResultKeys:
    """Makes keys; the files that scenarios name are read once."""

    def __init__(self) -> None:
        self._contents: dict[str, str] = {}

    def key(self, scenario: Scenario, method: MethodSettings) -> str:
        """Return a hash of everything that a method's results depend on."""
        settings = scenario.model_dump(mode="json", exclude=set(NOT_IN_KEY))
        settings["engine"] = {"threads": scenario.engine.threads}
        settings["privacy"] = scenario.privacy.relevant()
        settings["method"] = method.model_dump(mode="json")
        found = versions()
        settings["versions"] = {name: found[name] for name in RELEVANT_VERSIONS}
        settings["files"] = [self._content(place) for place in _places(scenario)]
        if not method.reads_profile:
            _drop(settings, NOT_READ_WITHOUT_PROFILES)
        if method.allocation == FULL_PRECISION:
            _drop(settings, NOT_READ_BY_FULL_PRECISION)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def _content(self, place: str | None) -> str:
        """Return a hash of all files in a local file or folder; empty for what is elsewhere."""
        if place is None or not Path(place).exists():
            return ""
        if place not in self._contents:
            digest = hashlib.sha256()
            for file in _files(Path(place)):
                digest.update(f"{file.relative_to(place).as_posix()}\0".encode())
                with file.open("rb") as data:
                    digest.update(hashlib.file_digest(data, "sha256").digest())
            self._contents[place] = digest.hexdigest()
        return self._contents[place]


def _places(scenario: Scenario) -> tuple[str | None, ...]:
    """Return the files and folders that a scenario's results depend on."""
    corpus, people = scenario.corpus, scenario.corpus.population
    sentences = people.sentences if people else None
    return scenario.model.id, corpus.path, corpus.speakers, sentences


def _files(place: Path) -> Iterator[Path]:
    """Yield a file itself, or all files below a folder, in one order everywhere."""
    if place.is_file():
        yield place
        return
    for folder, folders, names in os.walk(place):
        folders.sort()
        yield from (Path(folder) / name for name in sorted(names))


def _drop(settings: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        section, _, name = key.partition(".")
        if name:
            settings[section].pop(name, None)
        else:
            settings.pop(section, None)
