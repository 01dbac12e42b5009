"""Error counts of clips, and pairing the counts of two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.errors import FedsimError


@dataclass(frozen=True)
class ClipCounts:
    """The counts of one client's test clips for one model: `wrong[i]` errors out of `of[i]`.

    Word errors out of words; for a classifier, 0 or 1 out of 1. A clip without words may have
    errors.
    """

    client: str
    wrong: np.ndarray
    """int64 (clips,)"""
    of: np.ndarray
    """int64 (clips,)"""

    def __post_init__(self) -> None:
        if self.wrong.ndim != 1 or self.wrong.shape != self.of.shape:
            shapes = f"{self.wrong.shape} and {self.of.shape}"
            raise ValueError(f"counts of client {self.client!r} have shapes {shapes}")
        if (self.wrong < 0).any() or (self.of < 0).any():
            raise ValueError(f"counts of client {self.client!r} include a negative one")


def by_client(counts: Sequence[ClipCounts]) -> list[ClipCounts]:
    """Return the counts of the clients that have clips, ordered by the clients' names."""
    known: set[str] = set()
    for client in (c.client for c in counts):
        if client in known:
            raise FedsimError(f"client {client!r} is counted twice; give each client once")
        known.add(client)
    return sorted((c for c in counts if len(c.of)), key=lambda c: c.client)


def in_pairs(
    first: Sequence[ClipCounts], second: Sequence[ClipCounts]
) -> list[tuple[ClipCounts, ClipCounts]]:
    """Return both models' counts of each client.

    Raises:
        FedsimError: if clients or clips do not match.
    """
    ours, theirs = by_client(first), by_client(second)
    apart = {c.client for c in ours} ^ {c.client for c in theirs}
    if apart:
        raise FedsimError(
            f"client {min(apart)!r} has clips for only one of the two models; compare models on the"
            " same clients"
        )
    pairs = list(zip(ours, theirs, strict=True))
    for one, two in pairs:
        if not np.array_equal(one.of, two.of):
            raise FedsimError(
                f"the clips of client {one.client!r} differ between the two models"
                f" ({len(one.of)} clips with {one.of.sum()} in all against {len(two.of)} with"
                f" {two.of.sum()}); compare models on the same clips in the same order"
            )
    return pairs
