"""A layer of which a model file stores only some rows, such as a token embedding.

The rows of a vocabulary head are tokens: with a token's row its logit goes too. The layer keeps its
place, its name and its inputs; it is packed as a weight (K, ...) of the K rows kept. Rows are
rounded without second moments, so that those of one table are the same on a server and on a device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from fedsim.quant.layers import Layer

SUFFIX = ".rows"
"""Name of the tensor of a model file that says which rows of a layer it holds: layer name, then
this."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one layer that are kept."""

    layer: str
    kept: np.ndarray
    """bool (V,), of `layer`."""
    public: np.ndarray | None = None
    """bool (V,): those of them that all clients of a language keep, whatever a device chooses for
    the others. None if that is unknown, as of rows that were read from a file."""

    @property
    def count(self) -> int:
        """Number of rows kept, K."""
        return int(self.kept.sum())

    @cached_property
    def index(self) -> torch.Tensor:
        """The rows kept, ascending, int64 (K,)."""
        return torch.from_numpy(np.flatnonzero(self.kept))

    @cached_property
    def places(self) -> torch.Tensor:
        """Where each row lies among those kept, int64 (V,); -1 for a row that was dropped."""
        places = torch.full((self.kept.size,), -1)
        places[self.index] = torch.arange(len(self.index))
        return places

    @cached_property
    def bitmap(self) -> np.ndarray:
        """One bit per row, least significant first, uint8 (ceil(V / 8),)."""
        return np.packbits(self.kept, bitorder="little")

    @cached_property
    def key(self) -> str:
        """A hash of which rows are kept."""
        return hashlib.sha256(self.bitmap.tobytes()).hexdigest()

    @property
    def tensor(self) -> dict[str, np.ndarray]:
        """The tensor of a model file, by its name."""
        return {self.layer + SUFFIX: self.bitmap}


def may_be_trimmed(layer: Layer) -> bool:
    """Return whether a file may hold some rows of a layer: a head that is a table of tokens too."""
    return layer.kind == "linear" and bool(layer.aliases)


def rows_of(bitmap: np.ndarray, layer: Layer) -> Rows:
    """Return the rows of a layer, of V rows, in a bitmap, uint8 (ceil(V / 8),)."""
    kept = np.unpackbits(bitmap, count=layer.shape[0], bitorder="little")
    return Rows(layer.name, kept.astype(bool))


def trimmed_layers(layers: Sequence[Layer], rows: Rows | None) -> tuple[Layer, ...]:
    """Return the layers as they are packed: one with fewer rows has the shape (K, ...)."""
    if rows is None:
        return tuple(layers)
    return tuple(
        replace(layer, shape=(rows.count, *layer.shape[1:])) if layer.name == rows.layer else layer
        for layer in layers
    )


def kept_rows(weight: torch.Tensor, layer: Layer, rows: Rows | None) -> torch.Tensor:
    """Return the rows of a layer's full-precision weight that are packed: all, or (K, ...)."""
    if rows is None or layer.name != rows.layer:
        return weight
    return weight[rows.index.to(weight.device)]


def spread_logits(rows: Rows, device: torch.device) -> Callable[..., torch.Tensor]:
    """Return a forward hook of a head on `device` with K rows: its outputs (..., K) become logits
    (..., V).

    Those of dropped tokens are -inf, so no decoder chooses them.
    """
    index = rows.index.to(device)

    def hook(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        logits = output.new_full((*output.shape[:-1], rows.kept.size), -torch.inf)
        logits[..., index] = output
        return logits

    return hook


def look_up(weight: torch.Tensor, rows: Rows) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return f: token ids -> rows of `weight` (K, d); zeros for a dropped token."""
    all_places = rows.places.to(weight.device)

    def forward(ids: torch.Tensor) -> torch.Tensor:
        places = all_places[ids]
        return F.embedding(places.clamp(min=0), weight) * (places >= 0)[..., None]

    return forward
