"""The exceptions that a user sees, and hints for misspelled words.

Every mistake of a user raises a `FedsimError` whose text is one sentence, in one of two forms:
"what and where; what to do" or "where: what is wrong: what to do". Where is a file and line, a
client, a layer or a key; the value is named. The command line prints the text without a traceback;
a client sends it to the server as the reason of its failure.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path

_MAX_LISTED = 40
"""Names that a hint lists."""


class FedsimError(Exception):
    """A mistake that the user can correct; the text names it, its place and the remedy."""


class BudgetError(FedsimError):
    """A memory budget below the smallest feasible model file."""


class AudioError(FedsimError):
    """A clip that cannot be used: unreadable, empty, too short, not finite, or of another sample
    rate or number of channels."""


class DeclinedError(FedsimError):
    """A device has spent its privacy budget, and declines to release more."""


class ModelFileError(FedsimError):
    """A model file that is damaged, or of another model or version."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint with the known word nearest to `word`, or with all known words."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = names[:_MAX_LISTED] + (
        [f"and {len(names) - _MAX_LISTED:,} more"] if names[_MAX_LISTED:] else []
    )
    return "known: " + (", ".join(shown) if shown else "none")


def defect(error: Exception) -> str:
    """Return an error that nobody expected, and where it was raised, to be reported as a defect."""
    where = traceback.extract_tb(error.__traceback__)[-1:]
    places = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in where)
    return f"{type(error).__name__}: {error!s:.200}{places}; report it as a defect"
