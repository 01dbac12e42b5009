"""The lines of a table of results: what one method achieved, over all clients.

The printed table and the tables of a report consist of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from fedsim.base.units import MB
from fedsim.quant.allocation import ALLOCATORS
from fedsim.quant.formats import OWN
from fedsim.results.rows import Row
from fedsim.scenario.methods import FULL_PRECISION, NO_CLIENT, NOBODY
from fedsim.scenario.scores import normalized_by

Kind = Literal["WER", "CER", "accuracy"]
"""What is measured: error rate of words or of characters, or the share of clips that are recognized
correctly."""
UNITS: dict[Kind, str] = {"WER": "word", "CER": "character", "accuracy": "clip"}
"""What each counts."""


class Source(Enum):
    """Whose clips a model was tuned on; the value is how a table writes it.

    It is no text, so that no client's key is taken for it.
    """

    NOBODY = "-"
    OWN = "own"
    OTHER = "other"


@dataclass(frozen=True)
class Line:
    """What one method achieved, tuned on the clients' own clips or on others'."""

    method: str
    source: Source
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """The line in a few words: `myqasr/cosine, own clips`."""
        if self.method == FULL_PRECISION:
            return "full precision"
        words = {
            Source.NOBODY: "no clips",
            Source.OWN: "own clips",
            Source.OTHER: "others' clips",
        }
        return f"{self.method}, {words[self.source]}"

    @property
    def phrase(self) -> str:
        """The line as part of a sentence: `myqasr/cosine tuned on own clips`."""
        return self.name.replace(", ", " tuned on ", 1)

    @property
    def allocation(self) -> str:
        """How layers got their bit depths."""
        return self.rows[0].allocation

    @property
    def calibration(self) -> str:
        """How activation ranges were set."""
        return self.rows[0].calibration

    @property
    def is_full_precision(self) -> bool:
        """Whether it is the full-precision model."""
        return self.allocation == FULL_PRECISION

    @property
    def megabytes(self) -> list[float]:
        """The size of each model, in MB."""
        return [row.file_bytes / MB for row in self.rows]

    @property
    def mean_bits(self) -> list[float]:
        """The mean bit depth of each model."""
        return [row.mean_bits for row in self.rows]

    @property
    def clients(self) -> int:
        """How many clients have a model."""
        return len({row.client for row in self.rows})


def group_rows(rows: Iterable[Row]) -> dict[tuple[str, Source], tuple[Row, ...]]:
    """Return (method, source) -> its rows, in the order of every table.

    Full precision comes first, then the baselines.
    """
    groups: dict[tuple[str, Source], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (_rank(row.allocation), row.method)):
        for source in Source:  # in this order within a method
            groups.setdefault((row.method, source), [])
        groups[row.method, source_of(row)].append(row)
    return {key: tuple(group) for key, group in groups.items() if group}


def table_lines(rows: Iterable[Row]) -> tuple[Line, ...]:
    """Return the lines of a table of these rows, in order."""
    return tuple(Line(*key, group) for key, group in group_rows(rows).items())


def source_of(row: Row) -> Source:
    """Return whose clips a row's model was tuned on."""
    if row.tuned_on == NO_CLIENT:
        return Source.NOBODY
    return Source.OWN if row.tuned_on == row.client else Source.OTHER


def kind_of(rows: Iterable[Row]) -> Kind:
    """Return what rows measure; the first of `kinds_of` if they measure several things."""
    return next(iter(kinds_of(list(rows))), "accuracy")


def kinds_of(rows: Sequence[Row]) -> list[Kind]:
    """Return everything that rows measure."""
    found = {_kind(row) for row in rows}
    return [kind for kind in UNITS if kind in found]


def _kind(row: Row) -> Kind | None:
    if row.words is not None:
        return "CER" if row.metric == "cer" else "WER"
    return "accuracy" if row.correct is not None else None


def corpus_rate(rows: Iterable[Row], kind: Kind) -> float | None:
    """Return the rate of all rows together, in percent; None if nothing was counted.

    WER is word errors over words, CER the same of characters, accuracy is correct clips over clips,
    of all clients together.
    """
    if kind == "accuracy":
        classified = [row for row in rows if row.correct is not None]
        count = sum(row.correct or 0 for row in classified)
        total = sum(row.clips for row in classified)
    else:
        pairs = [row.counted or (0, 0) for row in rows if _kind(row) == kind]
        count, total = sum(errors for errors, _ in pairs), sum(of for _, of in pairs)
    return 100 * count / total if total else None


def normalizers_of(rows: Iterable[Row]) -> list[str]:
    """Return the names of the normalizers of the texts of which rows count errors, sorted."""
    return sorted({row.text_normalizer for row in rows if row.words is not None})


def texts_phrase(rows: Iterable[Row]) -> str:
    """Return how the texts were normalized of which rows count errors, in words; "" for none."""
    names = normalizers_of(rows)
    return normalized_by(" or ".join(names)) if names else ""


def has_loops(rows: Iterable[Row]) -> bool:
    """Return whether any clip's transcript was cut because the model repeated itself.

    Only then do tables have the columns of `loop_headings`.
    """
    return any(row.looped for row in rows)


def count_loops(rows: Iterable[Row]) -> int | None:
    """Return how many transcripts were cut because the model repeated itself.

    A clip on which several models are tested counts once for each. None if no model can loop.
    """
    counts = [row.looped for row in rows if row.looped is not None]
    return sum(counts) if counts else None


def rate_without_loops(rows: Iterable[Row]) -> float | None:
    """Return the WER or CER of all rows together without the clips that looped, in percent.

    That of models that cannot loop is their rate. None if no word is left.
    """
    counted = [(row.counted, row) for row in rows if row.counted is not None]
    errors = sum(pair[0] - (row.looped_errors or 0) for pair, row in counted)
    of = sum(pair[1] - (row.looped_words or 0) for pair, row in counted)
    return 100 * errors / of if of else None


def loop_headings(rows: Iterable[Row]) -> tuple[str, str]:
    """Return the headings of `count_loops` and `rate_without_loops`."""
    kinds = [kind for kind in kinds_of(list(rows)) if kind != "accuracy"]
    return "looped", f"{' or '.join(kinds)} % without"


def size_heading(rows: Iterable[Row]) -> str:
    """Return the heading of the sizes of models, which names a format that is not fedsim's own."""
    formats = sorted({row.format for row in rows} - {OWN, NOBODY})
    return ", ".join(["model MB", *formats])


def number(value: float | None, digits: int = 1) -> str:
    """Return a number for a table, `-` if it is not known."""
    return "-" if value is None else f"{value:.{digits}f}"


def span(values: Sequence[float], digits: int = 1, dash: str = "–") -> str:
    """Return the range of some numbers, `1.0–2.5`; one number if both ends round to the same."""
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low}{dash}{high}"


def size_digits(megabytes: Iterable[float]) -> int:
    """Return how many decimals sizes need: two for models of a few MB."""
    return 1 if max(megabytes, default=0.0) >= 10 else 2


def _rank(allocation: str) -> int:
    if allocation == FULL_PRECISION:
        return 0
    return 1 if ALLOCATORS[allocation].role == "baseline" else 2
