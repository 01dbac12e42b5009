"""Activation ranges of the candidates that a device is sent: delivered, or calibrated here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fedsim.errors import FedsimError
from fedsim.protocol import messages as m
from fedsim.quant.activations import Range
from fedsim.quant.bank import UnpackedLayer
from fedsim.quant.calibration import calibrate_layer
from fedsim.quant.calibrators import CALIBRATORS
from fedsim_clients.audio import PUBLIC, ClientAudio
from fedsim_clients.runtime import Runtime


@dataclass(frozen=True)
class Calibration:
    """Finds the activation ranges of candidates on one client's clips."""

    runtime: Runtime
    audio: ClientAudio

    def ranges(
        self, candidates: tuple[m.Candidate, ...]
    ) -> Iterator[tuple[m.Candidate, tuple[Range | None, ...]]]:
        """Yield each candidate with its activation ranges: those it came with, else calibrated."""
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
                depths = enumerate(candidate.bits)
                yield candidate, tuple(known[candidate.calibration, i, b] for i, b in depths)

    def _calibrate(
        self, source: str, candidates: list[m.Candidate]
    ) -> dict[tuple[str, int, int], Range | None]:
        """Return (calibration, layer index, bit depth) -> range, for all that `candidates` need.

        `source` says whose clips to observe. A layer's range depends on its own bit depth, not on
        the rest of the plan, so candidates share it, and one pass over the clips serves them all.
        """
        runtime = self.runtime
        known = runtime.remember(
            ("ranges", self.audio.mode, source, self.audio.data.language), dict
        )
        missing = {
            (c.calibration, i, b): c
            for c in candidates
            for i, b in enumerate(c.bits)
            if (c.calibration, i, b) not in known
        }
        if not missing:
            return known
        observed = self.audio.observed(source, {c.calibration for c in candidates})
        with torch.inference_mode():
            for (calibration, index, bits), candidate in missing.items():
                layer = runtime.model.layers[index]
                known[calibration, index, bits] = calibrate_layer(
                    calibration,
                    layer,
                    runtime.study.modules[layer.name],
                    observed.get(layer.name),
                    self.unpacked(candidate, index).weight,
                    runtime.study.activation_bits,
                )
        return known

    def unpacked(self, candidate: m.Candidate, index: int) -> UnpackedLayer:
        """Return a candidate's layer, unpacked; every client in this process shares it."""
        runtime = self.runtime
        return runtime.weights.layer(
            candidate.blob(index),
            runtime.model.layers[index],
            candidate.bits[index],
            runtime.study.granularity,
        )

    def _given(self, candidate: m.Candidate) -> tuple[Range | None, ...]:
        """Return the ranges that a candidate came with; `FedsimError` for another number."""
        layers = len(self.runtime.model.layers)
        if len(candidate.ranges) != 2 * layers:
            raise FedsimError(
                f"client {self.audio.data.key!r}: {candidate.name!r} came with "
                f"{len(candidate.ranges)} range ends for {layers} layers; run the same version of "
                f"fedsim on both sides"
            )
        pairs = zip(candidate.ranges[::2], candidate.ranges[1::2], strict=True)
        return tuple(None if math.isnan(low) else Range(low, high) for low, high in pairs)


def flatten(ranges: tuple[Range | None, ...]) -> list[float]:
    """Return low and high of each range, layer by layer; NaN and NaN for None."""
    return [x for r in ranges for x in ((math.nan, math.nan) if r is None else (r.low, r.high))]
