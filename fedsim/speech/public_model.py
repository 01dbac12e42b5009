"""What the server learns of a model from public clips: known before any user's audio.

Second moments of each layer's inputs, what each bit depth costs, and which inputs need 16 bits. All
of it depends on the model and the public clips alone. It is computed once and kept in the cache
folder, under a hash of everything that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch

from fedsim.base.accelerators import CPU, device_facts
from fedsim.quant.calibration import calibrate_layer
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.losses import MEASURE, input_losses, weight_losses, wide_inputs
from fedsim.quant.model import Batch, device_of
from fedsim.quant.moments import LayerMoments, SecondMoments, moment_shapes, second_moments
from fedsim.quant.observe import observe
from fedsim.quant.profile import LayerProfile
from fedsim.quant.rounding import ROUNDINGS
from fedsim.quant.rounding.plan import round_plan
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import PackedWeight, dequantize_weight
from fedsim.speech.fitting import fitted
from fedsim.speech.models.base import SpeechModel
from fedsim.speech.public_cache import kept_arrays, kept_moments
from fedsim.speech.public_set import PublicSet
from fedsim.speech.tuning import TuningPass, tuning_pass

FORMAT = 2
"""Version of what is kept: raised when the same clips give other numbers."""
LOSS_CLIPS = 8
"""Clips on which losses are measured, or `CLIPS_PER_LANGUAGE` per language if that is more."""
CLIPS_PER_LANGUAGE = 4
WIDE, NARROW = 16, 8

DENSE_BYTES = 1 << 30
"""Rounded weights that stay unpacked from one batch of clips to the next, at most."""
AUTO = "auto"
"""In place of a bit depth of activations: 8, or 16 where 8 loses too much."""


@dataclass(frozen=True, eq=False)
class PublicModel:
    """A model, the public clips, and what follows from both; every property is computed once."""

    model: SpeechModel
    read: Callable[[], PublicSet]
    """Returns the clips; called once, and only if something is to follow from them."""
    threads: int
    """torch threads, which change last digits."""
    _profiles: dict[tuple, LayerProfile] = field(default_factory=dict)

    @cached_property
    def clips(self) -> PublicSet:
        """The public clips, cut to the model's window."""
        return self.read().within(getattr(self.model, "window", math.inf))

    @cached_property
    def moments(self) -> Mapping[str, SecondMoments]:
        """Layer name -> second moments of its inputs on all public clips."""
        legal = moment_shapes(self.model)
        return kept_moments(self._key("moments"), legal, self._moments)

    def losses(
        self,
        rounding: str,
        weight_format: WeightFormat,
        depths: tuple[int, ...],
        *,
        pairs: bool = False,
    ) -> LayerProfile:
        """Return what each layer costs at each bit depth, rounded like this: a table (L, D).

        With `pairs` it has cross terms; see `fedsim.quant.losses.weight_losses`.
        """
        facts = rounding, weight_format.granularity, weight_format.zero_points, depths, pairs

        def measure() -> dict[str, np.ndarray]:
            profile = self._losses(rounding, weight_format, depths, pairs=pairs)
            found = {"values": profile.values}
            return found if profile.pairs is None else found | {"pairs": profile.pairs}

        if facts not in self._profiles:  # one object for all clients: allocators share their work
            entries = len(self.model.layers) * len(depths)
            legal = {"values": (len(self.model.layers), len(depths))}
            legal |= {"pairs": (entries, entries)} if pairs else {}
            kept = kept_arrays(self._key("losses", *facts), legal, measure)
            profile = LayerProfile(kept["values"], MEASURE, depths, kept.get("pairs"))
            self._profiles[facts] = profile
        return self._profiles[facts]

    @cached_property
    def wide(self) -> tuple[bool, ...]:
        """Which layers' inputs need 16 bits over a static range, layer by layer."""
        legal = {"losses": (len(self.model.layers),)}
        kept = kept_arrays(self._key("inputs"), legal, lambda: {"losses": self._input_losses()})
        return tuple(wide_inputs(kept["losses"]).tolist())

    def input_bits(
        self, activation_bits: int | Literal["auto"], calibration: str
    ) -> tuple[int, ...]:
        """Return the bit depth of each layer's input; the calibrator says how it is quantized.

        Args:
            activation_bits: one depth for all, or "auto": 8, and over static ranges 16 for the
                inputs that lose most at 8 (`fedsim.quant.losses.wide_inputs`).
            calibration: name of the calibrator.
        """
        layers = len(self.model.layers)
        if not isinstance(activation_bits, str):
            return (activation_bits,) * layers
        if not CALIBRATORS[calibration].static:
            return (NARROW,) * layers
        return tuple(WIDE if wide else NARROW for wide in self.wide)

    def _moments(self) -> dict[str, LayerMoments]:
        everything = range(len(self.clips.clips))
        return fitted(self.model, lambda m: second_moments(m, self._batches(m, everything)))

    def _losses(
        self, rounding: str, weight_format: WeightFormat, depths: tuple[int, ...], *, pairs: bool
    ) -> LayerProfile:
        moments = self.moments if ROUNDINGS[rounding].reads_moments else {}
        how = rounding, weight_format, depths, moments
        return fitted(
            self.model,
            lambda m: losses_on(m, self._batches(m, self._few), *how, pairs=pairs),
        )

    def _input_losses(self) -> np.ndarray:
        layers, modules = self.model.layers, dict(self.model.module.named_modules())
        seen = fitted(self.model, lambda m: observe(m, self._batches(m, self._few), rows=False))
        full = switch_of(self.model).full_weights()
        inputs = [
            calibrate_layer(
                "minmax",
                layer,
                modules[layer.name],
                seen.get(layer.name),
                partial(full.__getitem__, layer.name),
                NARROW,
            )
            for layer in layers
        ]
        return fitted(self.model, lambda m: input_losses(m, self._batches(m, self._few), inputs))

    @property
    def _few(self) -> list[int]:
        """Clips for losses: the first of each language, dealt round."""
        by_language: dict[str | None, list[int]] = {}
        for i, clip in enumerate(self.clips.clips):
            by_language.setdefault(clip.language, []).append(i)
        each = max(CLIPS_PER_LANGUAGE, -(-LOSS_CLIPS // len(by_language)))
        return sorted(chain.from_iterable(places[:each] for places in by_language.values()))

    def _batches(self, model: SpeechModel, places: Any) -> Iterator[Batch]:
        """Return batches of some clips for a forward pass of the model, or of the same model with
        smaller batches, language by language."""
        chosen = [self.clips.clips[i] for i in places]
        # A model that needs tokens transcribes here and now, before anybody records a pass.
        passes = [
            tuning_pass(model, [c.clip for c in chosen if c.language == language], language)
            for language in sorted({clip.language for clip in chosen}, key=str)
        ]
        return chain.from_iterable(one.batches() for one in passes)

    def _key(self, *facts: Any) -> str:
        """Return the name of a result: what it is, and a hash of what it depends on."""
        text = json.dumps(
            [
                FORMAT,
                *facts,
                self._content,
                self.clips.key,
                dict(self.model.settings),
                self.model.batch_size,  # like threads, it changes last digits
                self.threads,
                torch.__version__,
                _processor(self.model),
            ],
            default=str,
        )
        return f"{facts[0]}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    @cached_property
    def _content(self) -> str:
        """A hash of every weight of the model in full precision."""
        switch, digest = switch_of(self.model), hashlib.sha256()
        for name, tensor in sorted((switch.full_weights() | switch.full_leftovers()).items()):
            digest.update(name.encode())
            # Byte by byte: numpy knows no bfloat16.
            flat = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(flat.numpy().data)
        return digest.hexdigest()


def _processor(model: SpeechModel) -> str:
    """Return what a model computes on, as far as digits may depend on it."""
    device = device_of(model)
    if device.type == CPU:
        return torch.backends.cpu.get_cpu_capability()
    return device_facts(str(device))


def losses_on(
    model: SpeechModel,
    batches: Iterable[Batch],
    rounding: str,
    weight_format: WeightFormat,
    depths: tuple[int, ...],
    moments: Mapping[str, SecondMoments],
    *,
    pairs: bool = False,
    dense_bytes: int = DENSE_BYTES,
) -> LayerProfile:
    """Return what each layer costs at each bit depth on some clips: a table (L, D).

    Arguments as of `fedsim.quant.losses.weight_losses` and `fedsim.quant.rounding.plan.round_plan`.
    The rounded weights of all depths stay packed while the clips pass; `dense_bytes` of them stay
    unpacked too, the others are unpacked for each batch. That bounds the memory, and changes
    nothing else.
    """
    layers, full, device = model.layers, switch_of(model).full_weights(), device_of(model)
    packed: dict[int, tuple[PackedWeight, ...]] = {}
    dense: dict[tuple[int, int], torch.Tensor] = {}
    room = dense_bytes

    def weight(index: int, depth: int) -> torch.Tensor:
        nonlocal room
        if (index, depth) in dense:
            return dense[index, depth]
        if depth not in packed:
            bits = (depth,) * len(layers)
            packed[depth] = round_plan(full, layers, bits, rounding, weight_format, moments)
        with torch.inference_mode(False):  # a parameter is to hold it
            found = dequantize_weight(packed[depth][index]).to(device)
        if found.nbytes <= room:
            room -= found.nbytes
            dense[index, depth] = found
        return found

    return weight_losses(model, batches, depths, weight, pairs=pairs)


def own_losses(
    tuning: TuningPass, rounding: str, weight_format: WeightFormat, depths: tuple[int, ...]
) -> LayerProfile:
    """Return what each layer costs at each bit depth on a user's own clips: a table (L, D).

    It is measured with the rounding's `probe`, which needs no second moments.
    """
    probe = ROUNDINGS[rounding].probe
    return tuning.in_batches(
        lambda model, clips: losses_on(model, clips, probe, weight_format, depths, {})
    )
