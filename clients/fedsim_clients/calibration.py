"""Activation ranges of the candidates that a device is sent: delivered, or calibrated here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fedsim.errors import FedsimError
from fedsim.protocol import messages as m
from fedsim.quant.activations import InputFormat, Range
from fedsim.quant.bank import UnpackedLayer, from_blob, unpacked
from fedsim.quant.calibration import calibrate_layer, without_range
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.quant.weights import PackedWeight
from fedsim_clients.audio import PUBLIC, ClientAudio
from fedsim_clients.rounding import DeviceRounding
from fedsim_clients.runtime import Runtime


@dataclass(frozen=True)
class Calibration:
    """Finds how the inputs of candidates' layers are quantized, on one client's clips."""

    runtime: Runtime
    audio: ClientAudio

    @property
    def _rounding(self) -> DeviceRounding:
        return DeviceRounding(self.runtime, self.audio)

    def inputs(
        self, candidates: tuple[m.Candidate, ...]
    ) -> Iterator[tuple[m.Candidate, tuple[InputFormat, ...]]]:
        """Yield each candidate with the formats of its layers' inputs: static ranges are those that
        it came with, else calibrated."""
        bare = [c for c in candidates if not c.ranges]
        public = self._calibrate(
            PUBLIC, [c for c in bare if not CALIBRATORS[c.calibration].user_data]
        )
        own = self._calibrate(
            self.audio.data.key, [c for c in bare if CALIBRATORS[c.calibration].user_data]
        )
        for candidate in candidates:
            if candidate.ranges:
                yield candidate, self._given(candidate)
            else:
                known = own if CALIBRATORS[candidate.calibration].user_data else public
                yield candidate, tuple(known[key] for key in _keys(candidate))

    def _calibrate(
        self, source: str, candidates: list[m.Candidate]
    ) -> dict[tuple[Any, ...], InputFormat]:
        """Return the keys of `_keys` -> format, for all that `candidates` need.

        `source` says whose clips to observe. A layer's range depends on its own weights, not on the
        rest of the plan, so candidates share it, and one pass over the clips serves them all.
        """
        runtime, rows = self.runtime, self.audio.study().rows
        chosen = "" if rows is None else rows.key
        known = runtime.remember(
            ("ranges", self.audio.mode, source, self.audio.data.language, chosen), dict
        )
        missing = {
            key: (c, i) for c in candidates for i, key in enumerate(_keys(c)) if key not in known
        }
        if not missing:
            return known
        static = {c.calibration for c in candidates if CALIBRATORS[c.calibration].static}
        observed = self.audio.observed(source, static) if static else {}
        with torch.inference_mode():
            for key, (candidate, index) in missing.items():
                layer = runtime.model.layers[index]
                known[key] = calibrate_layer(
                    candidate.calibration,
                    layer,
                    runtime.study.modules[layer.name],
                    observed.get(layer.name),
                    partial(self._weight, candidate, index),
                    candidate.input_bits[index],
                    rows,
                )
        return known

    def _weight(self, candidate: m.Candidate, index: int) -> torch.Tensor:
        return self.unpacked(candidate, index).weight

    def unpacked(self, candidate: m.Candidate, index: int) -> UnpackedLayer:
        """Return a candidate's layer, unpacked; every client in this process shares those that the
        server packed."""
        runtime, layer = self.runtime, self.audio.study(candidate).layers[index]
        device = runtime.weights.device
        if candidate.rounded_here:
            return unpacked(self._rounding.rounded(candidate)[index], layer, device)
        if self._rounding.has_own_rows(candidate, index):
            return unpacked(self._rounding.own_rows(candidate, index), layer, device)
        return runtime.weights.layer(
            candidate.blob(index), layer, candidate.bits[index], runtime.study.weight_format
        )

    def packed(self, candidate: m.Candidate) -> tuple[PackedWeight, ...]:
        """Return a candidate's packed layers."""
        if candidate.rounded_here:
            return self._rounding.rounded(candidate)
        store, study = self.runtime.weights.store, self.audio.study(candidate)
        pairs = zip(study.layers, candidate.bits, strict=True)
        return tuple(
            self._rounding.own_rows(candidate, i)
            if self._rounding.has_own_rows(candidate, i)
            else from_blob(store.get(candidate.blob(i)), layer, b, study.weight_format)
            for i, (layer, b) in enumerate(pairs)
        )

    def put(self, candidate: m.Candidate) -> bytes:
        """Store the layers that the device rounded, for other clients to test; return their names
        in a row."""
        return self._rounding.put(candidate) if candidate.rounded_here else b""

    def _given(self, candidate: m.Candidate) -> tuple[InputFormat, ...]:
        """Return the formats with the ranges that a candidate came with; `FedsimError` for another
        number of them."""
        layers = len(self.runtime.model.layers)
        if len(candidate.ranges) != 2 * layers:
            raise FedsimError(
                f"client {self.audio.data.key!r}: {candidate.name!r} came with "
                f"{len(candidate.ranges)} range ends for {layers} layers; run the same version of "
                f"fedsim on both sides"
            )
        pairs = zip(candidate.ranges[::2], candidate.ranges[1::2], strict=True)
        calibrator = CALIBRATORS[candidate.calibration]
        return tuple(
            without_range(calibrator, layer, bits)
            if math.isnan(low)
            else InputFormat(bits, Range(low, high))
            for layer, bits, (low, high) in zip(
                self.runtime.model.layers, candidate.input_bits, pairs, strict=True
            )
        )


def _keys(candidate: m.Candidate) -> Iterator[tuple[Any, ...]]:
    """Yield, layer by layer, all but the clips that the format of a layer's input depends on."""
    how = candidate.calibration, candidate.rounding, candidate.moments
    for i, (bits, wide) in enumerate(zip(candidate.bits, candidate.input_bits, strict=True)):
        yield *how, i, bits, wide


def flatten(inputs: tuple[InputFormat, ...]) -> list[float]:
    """Return low and high of each range, layer by layer; NaN and NaN where there is none."""
    ranges = [how.range for how in inputs]
    return [x for r in ranges for x in ((math.nan, math.nan) if r is None else (r.low, r.high))]
