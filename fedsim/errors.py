"""The one exception a user sees.

Every mistake a user can make ends in a `FedsimError` whose text is one sentence: what is wrong,
where (file, client, layer, YAML line), with the value, and what to do about it. The command line
prints it without a traceback; a client sends it to the server as the reason of its failure.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LISTED = 40  # names in a hint


class FedsimError(Exception):
    """A mistake that the user can mend; its text says what, where and how."""


class BudgetError(FedsimError):
    """A memory budget below the smallest feasible model file."""


class AudioError(FedsimError):
    """A clip that cannot be used: empty, not finite, too short, wrong rate or channels,
    unreadable."""


class DeclinedError(FedsimError):
    """A device that has spent its privacy budget releases nothing more."""


class ModelFileError(FedsimError):
    """A model file that is damaged, of another model or of another version."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the known word nearest to `word`, or lists all that are known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = names[:_LISTED] + ([f"and {len(names) - _LISTED:,} more"] if names[_LISTED:] else [])
    return "known: " + (", ".join(shown) if shown else "none")
