"""A model that was made for one user: it transcribes, is saved and loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from fedsim.base.accelerators import AUTO, CPU, deterministic, find_device
from fedsim.errors import FedsimError, ModelFileError
from fedsim.export import Exported
from fedsim.personal.checks import checked_clips
from fedsim.quant import modelfile
from fedsim.quant.activations import InputFormat
from fedsim.quant.allocation import mean_bits
from fedsim.quant.formats import OWN
from fedsim.quant.integers import IntegerWeight, integers_of
from fedsim.quant.layers import Layer
from fedsim.quant.model import device_of
from fedsim.quant.modelfile import ModelFile
from fedsim.quant.modelheader import LANGUAGE, PLANNED_FOR
from fedsim.quant.rows import trimmed_layers
from fedsim.quant.signatures import KeySource
from fedsim.quant.switch import Switch, switch_of
from fedsim.quant.weights import dequantize_weight
from fedsim.speech.models import load_model
from fedsim.speech.models.base import SpeechModel, transcribe_clips
from fedsim.speech.vocabulary import embedding

TARGET_LANG = "target_lang"
_MAX_WINDOW_S = 1e6
"""Seconds; a model says itself which of them it takes."""


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
    def format(self) -> str:
        """Name of the format whose files the budget was for."""
        return str(self.file.manifest.settings.get(PLANNED_FOR, OWN))

    @property
    def inputs(self) -> dict[str, InputFormat]:
        """How each layer's input is quantized, by layer name."""
        names = [layer.name for layer in self.model.layers]
        return dict(zip(names, self.file.inputs, strict=True))

    def transcribe(self, clips: Sequence[Any]) -> list[str]:
        """Return one transcript per clip, in the forms that `personalize` takes, or class name for
        a classifier.

        Raises `AudioError` for a clip that cannot be used.
        """
        checked = checked_clips(clips)
        switch = switch_of(self.model)
        self._install(switch)
        try:
            with deterministic(str(device_of(self.model))):
                return transcribe_clips(self.model, checked, self.language)
        finally:
            switch.restore()

    def save(self, path: str | os.PathLike[str], *, key: KeySource | None = None) -> int:
        """Write the model file atomically (safetensors) and return its size: `nbytes`.

        With a `key`, an Ed25519 private key (the path of a PEM file, or its contents), the file is
        signed: `load_personalized(path, key=public_key)` refuses all others. A signed file is as
        long as an unsigned one.

        Raises `FedsimError` if the file cannot be written, the key is not a private key, or the
        model was loaded from a path so long (about 120 characters) that the header has no room for
        a signature.
        """
        return modelfile.write(path, self.model.layers, self.file, key)

    def export(
        self, folder: str | os.PathLike[str], *, to: str = "onnx", widen: bool = False
    ) -> Exported:
        """Write the model for another runtime and return the folder with the bytes of its files.

        Its weights are those of this model, number for number, still packed. Inputs of layers are
        computed as the runtime does it, whatever this model does with them.

        Args:
            folder: to make; it must not exist, or be empty.
            to: a name in `fedsim.quant.formats.FORMATS`.
            widen: store bit depths that the format lacks at the next one that it has.

        Raises:
            FedsimError: if the format does not exist or its packages are not installed, the model
                cannot be exported, it has a depth that the format lacks, or the folder is not
                empty or cannot be written.
        """
        from fedsim.export import export

        return export(
            self.model,
            self.file.weights,
            self._leftovers,
            folder,
            to=to,
            widen=widen,
            rows=self.file.rows,
            language=self.language,
        )

    @property
    def _layers(self) -> tuple[Layer, ...]:
        """The layers as the file has them: one maybe with fewer rows."""
        return trimmed_layers(self.model.layers, self.file.rows)

    @cached_property
    def _weights(self) -> dict[str, torch.Tensor]:
        pairs = zip(self.model.layers, self.file.weights, strict=True)
        device = device_of(self.model)
        return {layer.name: dequantize_weight(packed).to(device) for layer, packed in pairs}

    @cached_property
    def _integers(self) -> dict[str, IntegerWeight | None]:
        if device_of(self.model).type != CPU:
            return {}
        pairs = zip(self._layers, self.file.weights, strict=True)
        return {layer.name: integers_of(layer, packed) for layer, packed in pairs}

    @cached_property
    def _leftovers(self) -> dict[str, torch.Tensor]:
        device = device_of(self.model)
        rest = modelfile.load_leftovers(self.file.leftovers)
        return {name: tensor.to(device) for name, tensor in rest.items()}

    def _install(self, switch: Switch) -> None:
        switch.install(self._weights, self._leftovers, self.inputs, self._integers, self.file.rows)


def load_personalized(
    path: str | os.PathLike[str],
    model: str | os.PathLike[str] | SpeechModel | None = None,
    *,
    language: str | None = None,
    key: KeySource | None = None,
    device: str = AUTO,
) -> PersonalizedModel:
    """Read a model file that `PersonalizedModel.save` or a run wrote.

    Args:
        path: of the file.
        model: the full-precision model that it was made from, whose architecture, tokenizer and
            preprocessing are needed; by default the one that the file names.
        language: replaces the language that it was personalized for.
        key: demands that the file was signed by the owner of this Ed25519 key: the path of a PEM
            file with the public key, or its contents. Without it the hash in the file is checked,
            which finds accidents and no intent: whoever changes a file can change its hash.
        device: where it computes, as in `load_model`; a `model` from there stays where it is.

    Raises:
        ModelFileError: if the file is missing, damaged, of another model, not signed by `key`, or
            holds what no model file may.
        FedsimError: if `key` is not an Ed25519 key, the device is not there, or the model that the
            file names cannot be loaded.
    """
    if device != AUTO:  # before a file is read
        find_device(device)
    if model is None or isinstance(model, str | os.PathLike):
        manifest = modelfile.read_manifest(path, key)
        options = _loading(path, manifest.settings)
        try:
            named = manifest.model if model is None else model
            speech = load_model(named, **options, device=device)
        except FedsimError as error:
            if model is not None:
                raise
            raise FedsimError(
                f"{path} was made from the model {manifest.model!r}, which cannot be loaded here"
                f" ({error}); name it: load_personalized(path, model=...)"
            ) from error
    elif device != AUTO:
        raise FedsimError("device is an option of load_model for a loaded model: give it there")
    else:
        speech = model
    rest = switch_of(speech).full_leftovers()
    file = modelfile.read(path, speech.layers, rest, key)
    made_with = _loading(path, file.manifest.settings)
    target_lang = speech.settings.get(TARGET_LANG)
    if made_with[TARGET_LANG] != target_lang:  # the same shapes, but another vocabulary
        raise ModelFileError(
            f"{path} was made from a model with target_lang {made_with[TARGET_LANG]!r}, but the one"
            f" that is given has {target_lang!r}; load that one with the same target_lang"
        )
    if file.rows is not None and file.rows.layer != _table(speech):
        raise modelfile.damaged(
            path, f"it drops rows of layer {file.rows.layer!r}, which needs all of them"
        )
    spoken = language or file.manifest.settings.get(LANGUAGE)
    return PersonalizedModel(speech, file, os.path.getsize(path), spoken)


def _loading(path: str | os.PathLike[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `load_model` in a file's settings, which name a language beside."""
    window_s, keep = settings.get("window_s"), settings.get("keep", [])
    spoken, target_lang = settings.get(LANGUAGE), settings.get(TARGET_LANG)
    normalize = settings.get("normalize")
    if window_s is not None and not (isinstance(window_s, float) and 0 < window_s <= _MAX_WINDOW_S):
        raise modelfile.damaged(path, "its window_s is not a number of seconds")
    if not isinstance(keep, list) or not all(isinstance(name, str) for name in keep):
        raise modelfile.damaged(path, "its keep is not a list of names")
    if spoken is not None and not isinstance(spoken, str):
        raise modelfile.damaged(path, "its language is not a text")
    if target_lang is not None and not isinstance(target_lang, str):
        raise modelfile.damaged(path, "its target_lang is not a text")
    if normalize is not None and not isinstance(normalize, bool):
        raise modelfile.damaged(path, "its normalize is neither true nor false")
    return {
        "window_s": window_s,
        "keep": tuple(keep),
        TARGET_LANG: target_lang,
        "normalize": normalize,
    }


def _table(speech: SpeechModel) -> str | None:
    """Return the layer of which a file may hold some rows; None if there is none."""
    try:
        return embedding(speech).name
    except FedsimError:
        return None
