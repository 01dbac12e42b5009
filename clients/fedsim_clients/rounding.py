"""Rounds a client's layers on its own device, on second moments that never leave it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedsim.protocol import messages as m
from fedsim.quant.bank import to_blob
from fedsim.quant.blending import mixed
from fedsim.quant.moments import SecondMoments
from fedsim.quant.rounding.plan import round_plan
from fedsim.quant.rows import Rows
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
                    self.audio.study(candidate).rows,
                )
            )

        return runtime.rounded.get(key, round_layers).layers

    def has_own_rows(self, candidate: m.Candidate, index: int) -> bool:
        """Return whether a layer has rows that the server does not know of."""
        rows = self.audio.study(candidate).rows
        named = rows is not None and rows.layer == self.runtime.model.layers[index].name
        return named and rows is not self._default_rows

    def own_rows(self, candidate: m.Candidate, index: int) -> PackedWeight:
        """Return the packed layer of which a device has rows of its own, rounded here."""
        return self._rows(candidate, index, self.audio.study(candidate).rows)

    @property
    def _default_rows(self) -> Rows | None:
        return self.runtime.trimmed.of(self.audio.data.language).rows

    def _rows(self, candidate: m.Candidate, index: int, rows: Rows | None) -> PackedWeight:
        runtime, bits = self.runtime, candidate.bits[index]
        kept = "" if rows is None else rows.key

        def round_rows() -> RoundedLayers:
            study, layer = runtime.study, runtime.model.layers[index]
            weights = study.switch.full_weights()
            how = candidate.rounding, study.weight_format
            return RoundedLayers(round_plan(weights, [layer], [bits], *how, {}, rows))

        return runtime.rounded.get(("rows", candidate.rounding, bits, kept), round_rows).layers[0]

    def _moments(self, candidate: m.Candidate) -> Mapping[str, SecondMoments]:
        return mixed(
            candidate.moments,
            self.audio.moments,
            lambda: self.runtime.public(candidate.public.hex()).moments,
            self.runtime.scenario.quantization.own_weight,
        )

    def put(self, candidate: m.Candidate) -> bytes:
        """Store the layers in the bank, for other clients to test; return their names in a row.

        None shows which rows are the device's own: that layer has those of its language.
        """
        store, layers = self.runtime.weights.store, list(self.rounded(candidate))
        for i in range(len(layers)):
            if self.has_own_rows(candidate, i):
                layers[i] = self._rows(candidate, i, self._default_rows)
        names = [store.put(to_blob(layer)) for layer in layers]
        return bytes.fromhex("".join(names))
