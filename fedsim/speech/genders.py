"""Words for genders, as corpora write them: one mapping for all readers."""

from __future__ import annotations

FEMALE, MALE, OTHER = "female", "male", "other"
_WORDS = {
    FEMALE: ("female", "f", "woman", "women", "girl", "feminine", "female_feminine"),
    MALE: ("male", "m", "man", "men", "boy", "masculine", "male_masculine"),
    # A gender that is stated, and neither of the two that a study compares.
    OTHER: (
        *("other", "o", "non-binary", "nonbinary", "non_binary", "intersex", "transgender"),
        *("diverse", "divers"),
    ),
}
_UNSTATED = (
    *("", "-", "?", "n/a", "na", "nan", "none", "null", "u", "unk", "unknown", "unspecified"),
    *("not specified", "undisclosed", "do_not_wish_to_say", "do not wish to say"),
    *("prefer not to say", "prefer_not_to_say"),
)
KNOWN: dict[str, str | None] = {
    **{word: gender for gender, words in _WORDS.items() for word in words},
    **dict.fromkeys(_UNSTATED, None),
}
"""Word in small letters -> gender, None for one that is not stated."""


def gender_of_word(word: str | None) -> str | None:
    """Return female, male or other for a corpus' word, None where it states none.

    A word that is not known is returned as it is.
    """
    if word is None:
        return None
    return KNOWN.get(word.strip().lower(), word.strip())


def is_known(gender: str | None) -> bool:
    """Return whether `gender_of_word` knew the word that it made this of."""
    return gender in (None, *_WORDS)
