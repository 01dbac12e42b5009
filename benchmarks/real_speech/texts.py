"""The texts of telephone prompts: read from a listing, and kept where they are plain."""

from __future__ import annotations

import re

MIN_WORDS = 3

# Prompts that are a sound; not every language puts the description of it in brackets.
_SOUNDS = {"beep", "beeperr", "confbridge-join", "confbridge-leave", "tt-monkeys"}

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

_NOT_PLAIN = re.compile(
    r"""
      [][()<>{}*\#@|/\\=+~^\ufffd]   # stage directions, signs, alternatives, lost letters
    | \?(?!$|\s+[^\W\d_a-z])         # a question mark amid a sentence stands for a lost letter
    | \.\.|…                         # a gap that another prompt fills
    | [a-z0-9]+-[a-z0-9-]+:          # the next prompt's name: a line break was lost
    | www\.                          # an address is not written as it is read out
    """,
    re.VERBOSE,
)


def parse_texts(raw: bytes) -> dict[str, str]:
    """Return the names and texts in a `core-sounds-XX.txt`: UTF-8, `name: text`, `;` comments."""
    texts: dict[str, str] = {}
    for line in raw.decode("utf-8-sig").splitlines():
        name, colon, text = line.partition(":")
        if colon and re.fullmatch(r"[\w/-]+", name.strip()):
            # The first text of a name counts: Spanish lists its "ten" under digits/0 as well.
            texts.setdefault(name.strip(), text.strip())
    return texts


def plain_text(name: str, text: str) -> str | None:
    """Return the spoken text of a prompt; None if it is not plain or has too few words."""
    text = " ".join(text.split())
    if text.count('"') % 2:
        text = text.replace('"', "")  # French closes quotations that nothing opened
    # Dots at either end mark half a sentence; they are not spoken.
    text = re.sub(r"^(?:\.{2,}|…)|(?:\.{2,}|…)$", "", text).strip(" ,:")
    # In the spelling alphabet, a letter is written and its name is spoken.
    if name in _SOUNDS or name.startswith("phonetic/") or _NOT_PLAIN.search(text):
        return None
    words = _WORD.findall(text)
    spelled = sum(len(word) == 1 and word.isupper() for word in words)
    if len(words) < MIN_WORDS or 2 * spelled > len(words):
        return None
    return text
