"""The method as a library call: one model, one user's clips, one budget, no federation.

pm = personalize("openai/whisper-base", clips, budget_mb=45, language="it")
pm.save("user.safetensors")
load_personalized("user.safetensors").transcribe(clips)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from fedsim.base.units import MB
from fedsim.errors import FedsimError, ModelFileError
from fedsim.quant import modelfile
from fedsim.quant.activations import MAX_ACTIVATION_BITS, MIN_ACTIVATION_BITS, Range
from fedsim.quant.allocation import ALLOCATORS, allocate, mean_bits
from fedsim.quant.calibration import calibrate_layer
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.quant.granularities import GRANULARITIES
from fedsim.quant.integers import IntegerWeight, integers_of
from fedsim.quant.measures import MEASURES
from fedsim.quant.modelfile import ModelFile
from fedsim.quant.packable import packable
from fedsim.quant.packing import MAX_BITS, MIN_BITS
from fedsim.quant.profile import profile_of
from fedsim.quant.sensitivity import sense
from fedsim.quant.switch import Switch, switch_of
from fedsim.quant.weights import dequantize_weight, quantize_weight
from fedsim.speech.audio import check_clip
from fedsim.speech.models import load_model
from fedsim.speech.models.base import SpeechModel, public_clips, transcribe_clips
from fedsim.speech.tuning import tuning_pass


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

    @property
    def bits(self) -> dict[str, int]:
        """Bit depth of each layer, by layer name."""
        names = [layer.name for layer in self.model.layers]
        return dict(zip(names, self.file.manifest.bits, strict=True))

    @property
    def mean_bits(self) -> float:
        """Average bit depth of a weight."""
        return mean_bits(self.file.manifest.bits, [layer.n_weights for layer in self.model.layers])

    @property
    def ranges(self) -> dict[str, Range]:
        """Range of each layer's input, by layer name; embedding layers have none."""
        pairs = zip(self.model.layers, self.file.ranges, strict=True)
        return {layer.name: rng for layer, rng in pairs if rng is not None}

    def transcribe(self, clips: Sequence[np.ndarray]) -> list[str]:
        """Return one transcript per clip (1-D float32 at 16 kHz), or class name for a classifier.

        Raises `AudioError` for a clip that cannot be used.
        """
        checked = _checked(clips)
        switch = switch_of(self.model)
        self._install(switch)
        try:
            return transcribe_clips(self.model, checked, self.language)
        finally:
            switch.restore()

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the model file atomically (safetensors) and return its size: `nbytes`."""
        return modelfile.write(path, self.model.layers, self.file)

    @cached_property
    def _weights(self) -> dict[str, torch.Tensor]:
        pairs = zip(self.model.layers, self.file.weights, strict=True)
        return {layer.name: dequantize_weight(packed) for layer, packed in pairs}

    @cached_property
    def _integers(self) -> dict[str, IntegerWeight | None]:
        pairs = zip(self.model.layers, self.file.weights, strict=True)
        return {layer.name: integers_of(layer, packed) for layer, packed in pairs}

    @cached_property
    def _leftovers(self) -> dict[str, torch.Tensor]:
        return modelfile.load_leftovers(self.file.leftovers)

    def _install(self, switch: Switch) -> None:
        bits = self.file.manifest.activation_bits
        switch.install(self._weights, self._leftovers, self.ranges, bits, self._integers)


def personalize(
    model: str | os.PathLike[str] | SpeechModel,
    clips: Sequence[np.ndarray],
    *,
    budget_mb: float,
    allocation: str = "myqasr",
    calibration: str = "cosine",
    sensitivity: str = "median",
    order: str = "descending",
    weights: str = "per_channel",
    activation_bits: int = 8,
    bit_depths: Sequence[int] = tuple(range(MIN_BITS, MAX_BITS + 1)),
    language: str | None = None,
    window_s: float | None = None,
    keep: Sequence[str] = (),
    seed: int = 0,
) -> PersonalizedModel:
    """Compress a speech model for one user and one memory budget (myQASR, Algorithm 1).

    Args:
        model: hub id or folder of a pretrained model, or one from `load_model`.
        clips: the user's clips, 1-D float32 arrays at 16 kHz, 10 to 100 of them; no transcript is
            needed.
        budget_mb: maximum size of the model file with everything in it, in MB (2^20 bytes).
        allocation: how layers get bits: myqasr, uniform, shuffled, reversed, linear; or by a table
            of losses, knapsack, knapsack_pairs.
        calibration: how activation ranges are set: cosine, minmax, hessian, none.
        sensitivity: what ranks the layers: median, mean, max, abs-max, std, var, normality, l1,
            l2, frobenius, spectral, kl.
        order: which layers lose bits first, descending (largest sensitivity) or ascending.
        weights: per_channel or per_tensor (the paper) scales.
        activation_bits: bit depth of activations, 4 to 16.
        bit_depths: bit depths that the device's runtime supports, each in 2..16.
        language: language of the clips for a multilingual model; None lets the model detect it.
        window_s: seconds of audio that Whisper's encoder takes (default 30); for a model from
            `load_model`, give this and `keep` to `load_model`.
        keep: names or patterns of layers that stay in half precision.
        seed: seeds the `shuffled` allocation.

    Raises:
        BudgetError: the budget is below the smallest feasible file, whose size the text names.
        AudioError: a clip is empty, not finite, not 1-D or too short.
        FedsimError: an unknown name, a model that cannot be loaded, or an option out of range.
    """
    checked = _checked(clips)
    depths = _check_options(budget_mb, activation_bits, bit_depths)
    for family, choice in (
        (GRANULARITIES, weights),
        (ALLOCATORS, allocation),
        (CALIBRATORS, calibration),
        (MEASURES, sensitivity),
    ):
        family[choice]  # raises for an unknown name before any work is done
    if isinstance(model, str | os.PathLike):
        speech = load_model(model, window_s=window_s, keep=keep)
    elif window_s is not None or keep:
        raise FedsimError(
            "window_s and keep are options of load_model for a loaded model: give them there"
        )
    else:
        speech = model
    ready = packable(
        speech,
        speech.id,
        granularity=weights,
        activation_bits=activation_bits,
        depths=depths,
        settings=speech.settings,
    )
    tuning = tuning_pass(speech, checked, language)
    values, observations = tuning.sense(
        lambda network, batches: sense(network, batches, sensitivity), [calibration]
    )
    bits = allocate(
        allocation,
        profile_of(values, sensitivity),
        ready.sizes,
        int(budget_mb * MB),
        order=order,
        rng=np.random.default_rng(seed),
    )
    if not CALIBRATORS[calibration].user_data:
        observations = tuning_pass(speech, public_clips(), language).observe([calibration])
    elif observations is None:
        observations = tuning.observe([calibration])
    full = ready.switch.full_weights()
    layers = speech.layers
    packed = tuple(
        quantize_weight(full[layer.name], depth, weights)
        for layer, depth in zip(layers, bits, strict=True)
    )
    with torch.inference_mode():
        ranges = tuple(
            calibrate_layer(
                calibration,
                layer,
                ready.modules[layer.name],
                observations.get(layer.name),
                dequantize_weight(weight),
                activation_bits,
            )
            for layer, weight in zip(layers, packed, strict=True)
        )
    file = ModelFile(ready.manifest(bits, language), packed, ranges, ready.stored)
    return PersonalizedModel(speech, file, ready.sizes.total(bits), language)


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


def _checked(clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    if isinstance(clips, np.ndarray) and clips.ndim == 1:
        raise FedsimError("clips is one array; give a list of 1-D arrays, such as [clip]")
    if not len(clips):
        raise FedsimError("no clips were given; give at least one, better 10 or more")
    return [check_clip(clip, f"clip {i}") for i, clip in enumerate(clips)]


def _check_options(
    budget_mb: float, activation_bits: int, bit_depths: Sequence[int]
) -> tuple[int, ...]:
    if not (np.isfinite(budget_mb) and budget_mb > 0):
        raise FedsimError(f"budget_mb is {budget_mb}: give a positive number of MB (2^20 bytes)")
    if not MIN_ACTIVATION_BITS <= activation_bits <= MAX_ACTIVATION_BITS:
        raise FedsimError(
            f"activation_bits is {activation_bits}: use {MIN_ACTIVATION_BITS} to "
            f"{MAX_ACTIVATION_BITS}"
        )
    depths = tuple(sorted(set(bit_depths)))
    whole = all(depth == int(depth) for depth in depths)
    if not depths or not whole or depths[0] < MIN_BITS or depths[-1] > MAX_BITS:
        raise FedsimError(
            f"bit_depths is {list(bit_depths)}: use whole depths from {MIN_BITS} to {MAX_BITS}"
        )
    return depths
