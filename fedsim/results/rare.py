"""Errors on rare words: the share of them that were wrong, over all clients, and its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.base.statistics import ClipCounts, rate
from fedsim.results.rows import Row
from fedsim.results.runs import Part

HEADING = "rare wrong %"


@dataclass(frozen=True)
class RareRate:
    """The percentage of rare words that were wrong, with its 95 % interval.

    The bounds are None for a single client, and where the clients are not a sample: devices send no
    counts of single clips' rare words, so only other clients can be left to chance.
    """

    value: float
    low: float | None
    high: float | None


def rare_rate(part: Part, rows: Sequence[Row]) -> RareRate | None:
    """Return the rate of some rows of a part together; None if they have no rare word.

    A client that tests the models of several others has several rows, which are summed.
    """
    sums: dict[str, np.ndarray] = {}
    for row in rows:
        if row.rare_words is not None:
            pair = np.array([row.rare_errors or 0, row.rare_words], np.int64)
            sums[row.client] = sums.get(row.client, 0) + pair
    counts = [ClipCounts(client, pair[:1], pair[1:]) for client, pair in sums.items()]
    # One unit per client: resampling them as clips are resampled is resampling clients.
    found = rate(counts, np.random.default_rng(0), over_clients=False)
    if math.isnan(found.value):
        return None
    known = part.clients_are_a_sample and not math.isnan(found.low)
    low, high = (100 * found.low, min(100.0, 100 * found.high)) if known else (None, None)
    return RareRate(100 * found.value, low, high)


def rare_share(rows: Iterable[Row]) -> float | None:
    """Return the percentage of the rare words of some rows that were wrong; None for none."""
    pairs = [(row.rare_errors or 0, row.rare_words or 0) for row in rows]
    words = sum(of for _, of in pairs)
    return 100 * sum(wrong for wrong, _ in pairs) / words if words else None


def has_rare(rows: Iterable[Row]) -> bool:
    """Return whether errors on rare words were counted."""
    return any(row.rare_beyond is not None for row in rows)


def rare_phrase(rows: Iterable[Row]) -> str:
    """Return which words are rare, in words; "" if none were counted."""
    known = sorted({row.rare_beyond for row in rows if row.rare_beyond is not None})
    numbers = " or ".join(f"{number:,}" for number in known)
    return f"words beyond the {numbers} most frequent of their language" if known else ""
