"""Carrying packed layers to devices that do not see the server's bank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from fedsim import messages as m
from fedsim.quant.bank import BlobStore


@dataclass(frozen=True)
class Carrier:
    """Says which layers to put into a message: each comes to a device once in a run."""

    store: BlobStore
    _held: defaultdict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Node -> names of the layers that it was sent."""

    def lacking(self, node: int, candidates: Iterable[m.Candidate]) -> tuple[bytes, ...]:
        """Return the packed layers of `candidates` that the device was not sent yet, in order."""
        names = dict.fromkeys(
            candidate.blob(layer)
            for candidate in candidates
            for layer in range(len(candidate.bits))
        )
        new = [name for name in names if name not in self._held[node]]
        self._held[node].update(new)
        return tuple(self.store.get(name) for name in new)
