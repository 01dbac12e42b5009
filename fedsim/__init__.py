"""fedsim: federated personalization of speech models, simulated.

`personalize` and `load_personalized` are the method on its own; studies run from YAML with the
command `fedsim run`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedsim.base.version import __version__

if TYPE_CHECKING:
    from fedsim.personal import PersonalizedModel, load_personalized, personalize
    from fedsim.speech.models import load_model, wrap_model

__all__ = [
    "PersonalizedModel",
    "__version__",
    "load_model",
    "load_personalized",
    "personalize",
    "wrap_model",
]

_HOMES = {
    "PersonalizedModel": "fedsim.personal",
    "load_personalized": "fedsim.personal",
    "personalize": "fedsim.personal",
    "load_model": "fedsim.speech.models",
    "wrap_model": "fedsim.speech.models",
}


def __getattr__(name: str) -> Any:  # torch is imported by whoever needs it, not by `import fedsim`
    if name not in _HOMES:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
