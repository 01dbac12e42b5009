"""A model that was made for one user: it transcribes, is saved and loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from fedsim.errors import ModelFileError
from fedsim.personal.checks import checked_clips
from fedsim.quant import modelfile
from fedsim.quant.activations import InputFormat
from fedsim.quant.allocation import mean_bits
from fedsim.quant.integers import IntegerWeight, integers_of
from fedsim.quant.layers import Layer
from fedsim.quant.modelfile import ModelFile
from fedsim.quant.rows import trimmed_layers
from fedsim.quant.switch import Switch, switch_of
from fedsim.quant.weights import dequantize_weight
from fedsim.speech.models import load_model
from fedsim.speech.models.base import SpeechModel, transcribe_clips


@dataclass(frozen=True, eq=False)
class PersonalizedModel:
    """A mixed-precision model for one user, ready to transcribe and to save.

    Several of them may share one loaded `SpeechModel`: the one that transcribes first installs its
    weights, which takes milliseconds. They cannot be used by several threads at the same time.
    """

    model: SpeechModel = field(repr=False)
    file: ModelFile = field(repr=False)
    nbytes: int
    """Exact size of the saved file in bytes."""
    language: str | None = None
    uncompensated: tuple[str, ...] = ()
    """Layers that were rounded without compensation although it was asked for: they received too
    few inputs of the clips, or look rows up. Empty for a model that was loaded."""

    @property
    def bits(self) -> dict[str, int]:
        """Bit depth of each layer, by layer name."""
        names = [layer.name for layer in self.model.layers]
        return dict(zip(names, self.file.manifest.bits, strict=True))

    @property
    def mean_bits(self) -> float:
        """Average bit depth of a weight."""
        return mean_bits(self.file.manifest.bits, [layer.n_weights for layer in self._layers])

    @property
    def inputs(self) -> dict[str, InputFormat]:
        """How each layer's input is quantized, by layer name."""
        names = [layer.name for layer in self.model.layers]
        return dict(zip(names, self.file.inputs, strict=True))

    def transcribe(self, clips: Sequence[np.ndarray]) -> list[str]:
        """Return one transcript per clip (1-D float32 at 16 kHz), or class name for a classifier.

        Raises `AudioError` for a clip that cannot be used.
        """
        checked = checked_clips(clips)
        switch = switch_of(self.model)
        self._install(switch)
        try:
            return transcribe_clips(self.model, checked, self.language)
        finally:
            switch.restore()

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the model file atomically (safetensors) and return its size: `nbytes`."""
        return modelfile.write(path, self.model.layers, self.file)

    @property
    def _layers(self) -> tuple[Layer, ...]:
        """The layers as the file has them: one maybe with fewer rows."""
        return trimmed_layers(self.model.layers, self.file.rows)

    @cached_property
    def _weights(self) -> dict[str, torch.Tensor]:
        pairs = zip(self.model.layers, self.file.weights, strict=True)
        return {layer.name: dequantize_weight(packed) for layer, packed in pairs}

    @cached_property
    def _integers(self) -> dict[str, IntegerWeight | None]:
        pairs = zip(self._layers, self.file.weights, strict=True)
        return {layer.name: integers_of(layer, packed) for layer, packed in pairs}

    @cached_property
    def _leftovers(self) -> dict[str, torch.Tensor]:
        return modelfile.load_leftovers(self.file.leftovers)

    def _install(self, switch: Switch) -> None:
        switch.install(self._weights, self._leftovers, self.inputs, self._integers, self.file.rows)


def load_personalized(
    path: str | os.PathLike[str],
    model: str | os.PathLike[str] | SpeechModel | None = None,
    *,
    language: str | None = None,
) -> PersonalizedModel:
    """Read a model file that `PersonalizedModel.save` or a run wrote.

    `model` is the full-precision model that it was made from, whose architecture, tokenizer and
    preprocessing are needed; by default the one that the file names. `language` replaces the one
    that it was personalized for. Raises `ModelFileError` for a file that is missing, damaged or of
    another model.
    """
    manifest = modelfile.read_manifest(path)
    settings = manifest.settings
    source = manifest.model if model is None else model
    if isinstance(source, str | os.PathLike):
        window_s, keep = settings.get("window_s"), settings.get("keep", ())
        speech = load_model(source, window_s=window_s, keep=keep)
    else:
        speech = source
    file = modelfile.read(path, speech.layers)
    rest = switch_of(speech).full_leftovers()
    shapes, stored = (
        {name: tensor.shape for name, tensor in tensors.items()}
        for tensors in (rest, file.leftovers)
    )
    if shapes != stored:
        raise ModelFileError(
            f"{path} was made with window_s {settings.get('window_s')} of {manifest.model!r}, and "
            f"the given model was loaded with another; give its id or folder instead"
        )
    return PersonalizedModel(
        speech, file, os.path.getsize(path), language or settings.get("language")
    )
