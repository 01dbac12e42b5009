"""fedsim: federated personalization of speech models, simulated.

`personalize` and `load_personalized` are the method on its own; `load_study`, `run` and `open_run`
are studies of many clients, as the command `fedsim run` plays them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedsim.base.version import __version__

if TYPE_CHECKING:
    from fedsim.api.result import Difference, StudyResult
    from fedsim.api.studies import list_studies, load_study, open_run, resume, run
    from fedsim.errors import FedsimError
    from fedsim.personal import PersonalizedModel, load_personalized, personalize
    from fedsim.scenario import Scenario
    from fedsim.speech.models import load_model, wrap_model

__all__ = [
    "Difference",
    "FedsimError",
    "PersonalizedModel",
    "Scenario",
    "StudyResult",
    "__version__",
    "list_studies",
    "load_model",
    "load_personalized",
    "load_study",
    "open_run",
    "personalize",
    "resume",
    "run",
    "wrap_model",
]

_HOMES = {
    "Difference": "fedsim.api.result",
    "FedsimError": "fedsim.errors",
    "PersonalizedModel": "fedsim.personal",
    "Scenario": "fedsim.scenario",
    "StudyResult": "fedsim.api.result",
    "list_studies": "fedsim.api.studies",
    "load_model": "fedsim.speech.models",
    "load_personalized": "fedsim.personal",
    "load_study": "fedsim.api.studies",
    "open_run": "fedsim.api.studies",
    "personalize": "fedsim.personal",
    "resume": "fedsim.api.studies",
    "run": "fedsim.api.studies",
    "wrap_model": "fedsim.speech.models",
}


def __getattr__(name: str) -> Any:  # torch is imported by whoever needs it, not by `import fedsim`
    if name not in _HOMES:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
