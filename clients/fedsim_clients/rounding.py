"""Rounds a client's layers on its own device, on second moments that never leave it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedsim.protocol import messages as m
from fedsim.quant.bank import to_blob
from fedsim.quant.moments import LayerMoments, mixed
from fedsim.quant.rounding.plan import round_plan
from fedsim.quant.weights import PackedWeight
from fedsim_clients.audio import ClientAudio
from fedsim_clients.runtime import Runtime


@dataclass(frozen=True)
class RoundedLayers:
    """The packed layers of a model that a device rounded, and the bytes that they take."""

    layers: tuple[PackedWeight, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.nbytes for layer in self.layers)


@dataclass(frozen=True)
class DeviceRounding:
    """Rounds candidates on one client's clips."""

    runtime: Runtime
    audio: ClientAudio

    def rounded(self, candidate: m.Candidate) -> tuple[PackedWeight, ...]:
        """Return the packed layers of a candidate that the device rounds."""
        runtime = self.runtime
        key = (self.audio.data.key, candidate.rounding, candidate.moments, candidate.bits)

        def round_layers() -> RoundedLayers:
            study = runtime.study
            return RoundedLayers(
                round_plan(
                    study.switch.full_weights(),
                    runtime.model.layers,
                    candidate.bits,
                    candidate.rounding,
                    study.weight_format,
                    self._moments(candidate),
                )
            )

        return runtime.rounded.get(key, round_layers).layers

    def _moments(self, candidate: m.Candidate) -> Mapping[str, LayerMoments]:
        return mixed(
            candidate.moments,
            self.audio.moments,
            lambda: self.runtime.public(candidate.public.hex()).moments,
            self.runtime.scenario.quantization.own_weight,
        )

    def put(self, candidate: m.Candidate) -> bytes:
        """Store the layers in the bank, for other clients to test; return their names in a row."""
        store = self.runtime.weights.store
        names = [store.put(to_blob(layer)) for layer in self.rounded(candidate)]
        return bytes.fromhex("".join(names))
