"""The key of a result: a hash of everything that it depends on.

The key covers every setting of the schema except the few named here, so a new setting is covered
without further work, and the contents of the files of the model and the corpus.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fedsim.runner.binding import relevant_versions
from fedsim.runner.contents import Contents, places
from fedsim.scenario.methods import FULL_PRECISION, MethodSettings
from fedsim.scenario.schema import Scenario

NOT_IN_KEY = (
    *("name", "description"),
    *("methods", "matrix"),  # each method has a key of its own
    # But what changes last digits is in, and the device that it is found to be.
    *("engine", "save_models"),
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
    """Computes keys; every file is read only once, by `contents`."""

    def __init__(self, contents: Contents | None = None) -> None:
        self.contents = contents or Contents()

    def key(self, scenario: Scenario, method: MethodSettings) -> str:
        """Return a hash of everything that a method's results depend on."""
        settings = scenario.model_dump(mode="json", exclude=set(NOT_IN_KEY))
        settings["engine"] = scenario.engine.digits
        settings["privacy"] = scenario.privacy.relevant()
        settings["method"] = method.model_dump(mode="json")
        settings["versions"] = relevant_versions(scenario)
        settings["files"] = {
            name: digest
            for name, place in places(scenario, self.contents).items()
            if name.partition(".")[0] not in NOT_IN_KEY
            and (digest := self.contents.digest(place))  # empty where it is not local
        }
        if not method.reads_profile:
            _drop(settings, NOT_READ_WITHOUT_PROFILES)
        if method.allocation == FULL_PRECISION:
            _drop(settings, NOT_READ_BY_FULL_PRECISION)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _drop(settings: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        section, _, name = key.partition(".")
        if name:
            settings[section].pop(name, None)
        else:
            settings.pop(section, None)
