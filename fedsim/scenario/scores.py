"""What is counted of transcripts, and how texts are normalized before they are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fedsim.registry import Lazy, Registry

Metric = Literal["wer", "cer"]
"""Error rate of words or of characters."""
AUTO: Literal["auto"] = "auto"
BASIC = "basic"
"""The normalizer of a scenario that names none."""
UNSPACED = "unspaced"
"""The normalizer after which a text has no words."""


@dataclass(frozen=True)
class TextNormalizer:
    """One way to normalize references and hypotheses alike before they are compared."""

    normalize: Callable[[str], str]
    """f(text) -> text. Runs of white space in what it returns become single spaces. The same text
    must always give the same."""
    summary: str


def normalized_by(name: str) -> str:
    """Return how texts were normalized, in words to stand beside a rate."""
    return "texts as they are" if name == "none" else f"texts normalized by {name}"


NORMALIZERS: Registry[TextNormalizer] = Registry("text normalizer")
NORMALIZERS.add(
    BASIC,
    TextNormalizer(
        Lazy("fedsim.speech.normalizers:basic"),
        summary="Lower case, without punctuation and text in brackets; for every language.",
    ),
)
NORMALIZERS.add(
    "english",
    TextNormalizer(
        Lazy("fedsim.speech.normalizers:english"),
        summary="Whisper's English normalizer: also numbers as digits, contractions written out,"
        " American spelling, without fillers and accents.",
    ),
)
NORMALIZERS.add(
    UNSPACED,
    TextNormalizer(
        Lazy("fedsim.speech.normalizers:unspaced"),
        summary="As basic, without spaces: for CER where references are segmented into words.",
    ),
)
NORMALIZERS.add(
    "none",
    TextNormalizer(
        Lazy("fedsim.speech.normalizers:unchanged"),
        summary="Texts as they are: case and punctuation count.",
    ),
)
