"""Text that is compared: one form for what looks and means the same."""

from __future__ import annotations

import re
import unicodedata

_UNSEEN = ("Cc", "Cs", "Zl", "Zp")


def plain_name(text: str, otherwise: str) -> str:
    """Return a text as a name of at most 100 letters, digits, '.', '_' and '-'; `otherwise` if
    nothing is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip("._-")[:100] or otherwise


def composed(text: str) -> str:
    """Return a text in Unicode's composed form (NFC), in which equal letters are equal bytes.

    An `é` may be one code point or an `e` with an accent, by the machine on which it was typed.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def has_control(text: str) -> bool:
    """Return whether a text has a control character, a line break or half a surrogate pair."""
    return not text.isprintable() and any(unicodedata.category(c) in _UNSEEN for c in text)
