"""How each client of a run ended: exactly one ending per client, so that the counts add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from fedsim.base.units import count_words
from fedsim.results.records import Failure

FINISHED, IN_PART = "finished", "in part"
ENDINGS = {
    FINISHED: "finished",
    IN_PART: "lost some results",
    "dropped": "did not answer",
    "declined": "declined",
    "quarantined": "was put in quarantine",
    "failed": "failed",
}
"""Ending -> what one client did, in words."""
_RANK = ("failed", "dropped", "quarantined", "declined")


def endings(finished: Iterable[str], failures: Sequence[Failure]) -> dict[str, str]:
    """Return client -> how it ended, one of `ENDINGS`.

    A client ended `in part` if it finished but lacks results because another client failed. If a
    client failed several times, the last outcome in the order failed, dropped, quarantined,
    declined counts: `failed` may only mean that another client's model was missing.
    """
    ended = dict.fromkeys(finished, FINISHED)
    for failure in sorted(failures, key=lambda failure: _RANK.index(failure.outcome)):
        has_results = ended.get(failure.client) in (FINISHED, IN_PART)
        ended[failure.client] = IN_PART if has_results else failure.outcome
    return ended


def sentences(ended: Iterable[str]) -> list[str]:
    """Return how many clients did not finish or lost results: `2 clients failed`, ..."""
    counts = Counter(ended)
    order = ("failed", "dropped", "quarantined", "declined", IN_PART)
    return [
        f"{count_words(counts[e], 'client')} {_plural(e, counts[e])}" for e in order if counts[e]
    ]


def _plural(ending: str, n: int) -> str:
    words = ENDINGS[ending]
    return words if n == 1 else words.replace("was ", "were ")
