"""How evenly a result is spread over clients, and how many clips a smaller model leaves no worse.

Every client counts once here, however many clips it has; a corpus rate counts every word once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OverClients:
    """The rates of clients in a few numbers, in the unit of the rates."""

    clients: int
    mean: float
    median: float
    worst_tenth: float
    """The mean over the tenth of the clients that is served worst, rounded up to whole clients: of
    fewer than eleven, the worst one. The accuracy of the worst tenth is what Li et al. 2020, "Fair
    Resource Allocation in Federated Learning", report."""
    spread: float
    """The standard deviation: the root of the mean squared distance from the mean."""


def over_clients(rates: Sequence[float], *, higher_is_better: bool = False) -> OverClients | None:
    """Return how the rates of clients are spread; None without clients.

    Args:
        rates: one finite rate per client, in any order.
        higher_is_better: for accuracies the worst clients are those with the lowest rates.
    """
    if not rates:
        return None
    worst_first = np.sort(np.asarray(rates, np.float64))
    if not higher_is_better:
        worst_first = worst_first[::-1]
    return OverClients(
        clients=len(rates),
        mean=float(worst_first.mean()),
        median=float(np.median(worst_first)),
        worst_tenth=float(worst_first[: math.ceil(len(rates) / 10)].mean()),
        spread=float(worst_first.std()),
    )


def share_no_worse(pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> float | None:
    """Return the share of clips on which a model makes no more errors than another, from 0 to 1.

    Args:
        pairs: for each client, the errors of the model and of the other on the same clips in the
            same order.

    Raises:
        ValueError: if a client's two sequences have different lengths.
    """
    no_worse = total = 0
    for errors, others in pairs:
        no_worse += sum(one <= other for one, other in zip(errors, others, strict=True))
        total += len(errors)
    return no_worse / total if total else None
