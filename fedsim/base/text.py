"""Text that is compared: one form for what looks and means the same."""

from __future__ import annotations

import unicodedata


def composed(text: str) -> str:
    """Return a text in Unicode's composed form (NFC), in which equal letters are equal bytes.

    An `é` may be one code point or an `e` with an accent, by the machine on which it was typed.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)
