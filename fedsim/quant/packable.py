"""A full-precision model made ready for packing, with what all model files made from it share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch

from fedsim.quant import modelfile
from fedsim.quant.allocation import Sizes
from fedsim.quant.formats import FORMATS, OWN
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.model import Quantizable, device_of
from fedsim.quant.modelheader import LANGUAGE, PLANNED_FOR, Manifest
from fedsim.quant.rows import Rows, trimmed_layers
from fedsim.quant.switch import Switch, switch_of

M = TypeVar("M", bound=Quantizable)
SizeTable = Callable[[Any, Mapping[str, torch.Tensor], Manifest, Sequence[int], Rows | None], Sizes]
"""f(model, leftovers as stored, manifest without bit depths, legal depths, rows): the exact bytes
of every file that ships. Raises `FedsimError` for a model that its format cannot hold."""


def own_sizes(
    model: Quantizable,
    stored: Mapping[str, torch.Tensor],
    manifest: Manifest,
    depths: Sequence[int],
    rows: Rows | None = None,
) -> Sizes:
    """Return the exact bytes of every model file of fedsim's own format."""
    return modelfile.model_sizes(model.layers, stored, manifest, depths, rows)


@dataclass(frozen=True, eq=False)
class PackableModel(Generic[M]):
    """A full-precision model, the exact sizes of its model files, and their common manifest."""

    model: M
    switch: Switch
    stored: dict[str, torch.Tensor]
    """Leftovers as model files store them (see `quant/layers.py`)."""
    sizes: Sizes
    """Bytes of each layer at every legal bit depth."""
    blank: Manifest
    """The manifest of every file, without bit depths."""
    rows: Rows | None = None
    """Which rows of one layer the files store; None for all."""
    size_table: SizeTable = own_sizes
    """What `sizes` is from."""

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers as they are packed: those of the model, one of them maybe with fewer rows."""
        return trimmed_layers(self.model.layers, self.rows)

    def trimmed(self, rows: Rows | None) -> PackableModel[M]:
        """Return the same model, of whose files one layer has only these rows."""
        sizes = self.size_table(self.model, self.stored, self.blank, self.sizes.depths, rows)
        return replace(self, sizes=sizes, rows=rows)

    @cached_property
    def leftovers(self) -> dict[str, torch.Tensor]:
        """Leftovers as a delivered model computes with them, where it does: floats in float32."""
        device = device_of(self.model)
        return {k: v.to(device) for k, v in modelfile.load_leftovers(self.stored).items()}

    @cached_property
    def modules(self) -> dict[str, torch.nn.Module]:
        """Layer name -> its module."""
        found = dict(self.model.module.named_modules())
        return {layer.name: found[layer.name] for layer in self.model.layers}

    @property
    def weight_format(self) -> WeightFormat:
        """How codes of weights become numbers."""
        return self.blank.weight_format

    def manifest(self, bits: tuple[int, ...], language: str | None = None) -> Manifest:
        """Return the manifest of a file with these bit depths, for clips in `language`."""
        settings = {} if language is None else {LANGUAGE: language}
        return replace(self.blank, bits=bits, settings=self.blank.settings | settings)


def packable(
    model: M,
    name: str,
    *,
    weight_format: WeightFormat,
    depths: Sequence[int],
    settings: Mapping[str, Any],
    format: str = OWN,
) -> PackableModel[M]:
    """Return a model ready for packing.

    Args:
        model: in full precision.
        name: the id or folder that it was loaded from.
        weight_format: how codes of weights become numbers.
        depths: legal bit depths of weights, ascending.
        settings: whatever else a loader of its files needs.
        format: name of the format of the files that ship, whose sizes are planned.

    Raises `FedsimError` for a format that does not exist or cannot hold the model.
    """
    switch = switch_of(model)
    stored = modelfile.store_leftovers(switch.full_leftovers())
    blank = Manifest(
        name,
        modelfile.fingerprint(model.layers),
        weight_format.granularity,
        weight_format.zero_points,
        (),
        dict(settings) | ({} if format == OWN else {PLANNED_FOR: format}),
    )
    size_table = own_sizes if format == OWN else FORMATS[format].sizes
    sizes = size_table(model, stored, blank, depths, None)
    return PackableModel(model, switch, stored, sizes, blank, size_table=size_table)
