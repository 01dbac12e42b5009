"""Which packed layers each device has been sent, where devices cannot read the server's bank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedsim.protocol import messages as m
from fedsim.quant.bank import BlobStore


@dataclass(frozen=True)
class SentLayers:
    """Chooses the layers to put into a message: each is sent to a device once per run."""

    store: BlobStore
    _sent: defaultdict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Node -> names of the layers that were sent to it."""

    def layers_to_send(self, node: int, candidates: Sequence[m.Candidate]) -> tuple[bytes, ...]:
        """Return what the device does not have yet: packed layers of `candidates`, in order, and
        the public clips that it blends its own with."""
        names = dict.fromkeys(
            candidate.blob(layer)
            for candidate in candidates
            if not candidate.rounded_here
            for layer in range(len(candidate.bits))
        )
        names |= {candidate.public.hex(): None for candidate in candidates if candidate.public}
        new = [name for name in names if name not in self._sent[node]]
        self._sent[node].update(new)
        return tuple(self.store.get(name) for name in new)
