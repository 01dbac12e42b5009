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
_MAX_COMPARED = 20_000
"""Names among which the nearest is looked for."""
_MAX_WORD = 200
"""Characters of a word to which the nearest is looked for."""
MAX_LINES = 20
"""Lines of an error's text that are shown."""
MAX_LINE = 600
"""Characters of a line that are shown."""
_MAX_VALUE = 80


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
    if len(word) <= _MAX_WORD and len(names) <= _MAX_COMPARED:
        short = [name for name in names if len(name) <= 2 * _MAX_WORD]
        close = difflib.get_close_matches(word, short, n=1, cutoff=0.6)
        if close:
            return f"did you mean {close[0]!r}?"
    shown = [shortened(name, _MAX_VALUE) for name in names[:_MAX_LISTED]]
    if names[_MAX_LISTED:]:
        shown.append(f"and {len(names) - _MAX_LISTED:,} more")
    return "known: " + (", ".join(shown) if shown else "none")


def misspelled(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that `word` is a typing mistake of; None if there is none.

    A typing mistake is at most two letters wrong, missing, too many or swapped with the next, and
    at most one of every four letters.
    """
    names = sorted(known)
    if len(word) > _MAX_WORD or len(names) > _MAX_COMPARED:
        return None
    allowed = min(2, len(word) // 4)
    near = [(_edits(word.lower(), name.lower()), name) for name in names if name != word]
    return next((name for edits, name in sorted(near) if edits <= allowed), None)


def _edits(a: str, b: str) -> int:
    """Return the edits between two words (optimal string alignment); at least 3 if they are far."""
    if abs(len(a) - len(b)) > 2:
        return 3
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(row[-1] + 1, rows[-1][j] + 1, rows[-1][j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


def defect(error: Exception) -> str:
    """Return an error that nobody expected, and where it was raised, to be reported as a defect."""
    where = traceback.extract_tb(error.__traceback__)[-1:]
    places = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in where)
    return f"{type(error).__name__}: {error!s:.200}{places}; report it as a defect"


def quoted(value: object) -> str:
    """Return a value as a sentence quotes it: its `repr`, at most 80 characters of it."""
    return shortened(repr(value), _MAX_VALUE)


def shortened(text: str, length: int) -> str:
    """Return a text without its middle, if it is longer than `length` characters."""
    if len(text) <= length:
        return text
    ends = (length - 5) // 2
    return f"{text[:ends]} ... {text[-ends:]}"


def on_a_screen(text: str) -> list[str]:
    """Return the lines of an error's text as a terminal shows them: `MAX_LINES` at most.

    None is longer than `MAX_LINE`, and characters that would steer the terminal are escaped.
    """
    lines = text.splitlines() or [""]
    shown = [shortened("".join(map(_visible, line)), MAX_LINE) for line in lines[:MAX_LINES]]
    if lines[MAX_LINES:]:
        shown.append(f"... and {len(lines) - MAX_LINES:,} more like these")
    return shown


def _visible(character: str) -> str:
    plain = character.isprintable() or character.isspace()
    return character if plain else character.encode("unicode_escape").decode()
