"""Models for other runtimes: a folder of files that ships, made from a model file.

The weights are those of the model file, number for number, and stay packed. Inputs of layers are
computed as the runtime does it: what a model file says about them is fedsim's own emulation.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.base.accelerators import CPU
from fedsim.errors import FedsimError
from fedsim.quant.formats import FORMATS, ExportFormat

if TYPE_CHECKING:
    import torch

    from fedsim.quant.rows import Rows
    from fedsim.quant.weights import PackedWeight
    from fedsim.speech.models.base import SpeechModel


@dataclass(frozen=True)
class Exported:
    """An exported model."""

    folder: Path
    files: Mapping[str, int]
    """Name of each file -> its bytes."""
    format: str
    """A name in `fedsim.quant.formats.FORMATS`."""

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


def export(
    model: SpeechModel,
    weights: Sequence[PackedWeight],
    leftovers: Mapping[str, torch.Tensor],
    folder: str | os.PathLike[str],
    *,
    to: str = "onnx",
    widen: bool = False,
    rows: Rows | None = None,
    language: str | None = None,
) -> Exported:
    """Write a quantized model for another runtime; the folder appears as a whole or not at all.

    Args:
        model: the full-precision model, which is left as it was.
        weights: packed weight of each layer.
        leftovers: the rest of the state, float32 where it is a float.
        folder: to make; it must not exist, or be empty.
        to: a name in `fedsim.quant.formats.FORMATS`.
        widen: store depths that the format lacks at the next one that it has.
        rows: of the vocabulary that the files keep; None for all.
        language: of whoever speaks, as `batches` takes it; None to have it detected.

    Raises:
        FedsimError: if the format does not exist or its packages are not installed, the model
            cannot be exported or is on a GPU, it has a depth that the format lacks, or the folder
            is not empty or cannot be written.
    """
    chosen = FORMATS[to]
    device = next(model.module.parameters()).device
    if device.type != CPU:
        raise FedsimError(
            f"the model is on {device}, and an export is traced on the processor: load it with"
            f" device='cpu'"
        )
    _check_depths(model, weights, to, chosen, widen)
    _check_new(Path(folder))
    traced = chosen.trace(model, leftovers)
    return export_traced(traced, weights, folder, to=to, rows=rows, language=language)


def export_traced(
    traced: Any,
    weights: Sequence[PackedWeight],
    folder: str | os.PathLike[str],
    *,
    to: str,
    rows: Rows | None = None,
    language: str | None = None,
) -> Exported:
    """Write packed weights into a network that was traced before; the rest is as in `export`.

    Args:
        traced: from the format's `trace`.
        weights: packed weight of each layer, of depths that the format stores.
        folder: to make; it must not exist, or be empty.
        to: a name in `fedsim.quant.formats.FORMATS`.
        rows: of the vocabulary that the files keep; None for all.
        language: of whoever speaks; None to have it detected.

    Raises:
        FedsimError: if the folder is not empty or cannot be written.
    """
    place = Path(folder)
    _check_new(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
        try:
            FORMATS[to].write(traced, weights, made, rows=rows, language=language)
            made.chmod(0o755)
            if place.exists():
                place.rmdir()
            made.rename(place)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise FedsimError(
            f"{place} cannot be written ({error.strerror or error}): free space, or name another"
            f" folder"
        ) from error
    return Exported(place, {f.name: f.stat().st_size for f in sorted(place.iterdir())}, to)


def _check_new(place: Path) -> None:
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise FedsimError(f"{place} is not empty: name a new folder")


def _check_depths(
    model: SpeechModel, weights: Sequence[PackedWeight], to: str, chosen: ExportFormat, widen: bool
) -> None:
    """Raise `FedsimError` for a depth that a format lacks, and cannot or should not widen."""
    lacking = [
        (layer.name, weight.bits)
        for layer, weight in zip(model.layers, weights, strict=True)
        if weight.bits not in chosen.depths and not (widen and weight.bits in chosen.stored)
    ]
    if not lacking:
        return
    depths = ", ".join(map(str, sorted({bits for _, bits in lacking})))
    legal = ", ".join(map(str, chosen.depths))
    raise FedsimError(
        f"{to} stores {legal} bits, and {len(lacking)} layers have {depths} (first:"
        f" {lacking[0][0]!r}): personalize with bit_depths [{legal}], or store"
        f" them wider (widen=True, --widen)"
    )


def require(package: str, extra: str) -> Any:
    """Return an imported package; raises `FedsimError`, which names the extra that installs it."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise FedsimError(
            f"the package {package} is not installed: pip install 'fedsim-speech[{extra}]'"
        ) from error
