"""Testing of models on a client's test clips: what they hear, in their runtimes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from fedsim.protocol import messages as m
from fedsim.quant.activations import InputFormat
from fedsim.quant.runtimes import EMULATED, RUNTIMES
from fedsim.scenario.methods import FULL_PRECISION, NO_CLIENT
from fedsim.speech.clips import ClientData
from fedsim.speech.models.base import Hypothesis, SpeechModel, recognize_clips
from fedsim.speech.together import Clips, joins, recognize_together
from fedsim.study.devices import Limits
from fedsim_clients.audio import ClientAudio
from fedsim_clients.calibration import Calibration
from fedsim_clients.runtime import Runtime
from fedsim_clients.together import shared, small_results


@dataclass(frozen=True)
class Testing:
    """Tests models on the clips of one client."""

    runtime: Runtime
    audio: ClientAudio

    @property
    def _calibration(self) -> Calibration:
        return Calibration(self.runtime, self.audio)

    def full_precision(self) -> list[Hypothesis]:
        """Return what the full-precision model hears in the test clips."""
        model, group = self.runtime.model, self.audio.group
        return self._recognized(FULL_PRECISION, group, lambda: nullcontext(model))

    def candidate(
        self, candidate: m.Candidate, inputs: tuple[InputFormat, ...], key: Hashable
    ) -> list[Hypothesis]:
        """Return what a candidate hears in the test clips, in its runtime; `key` is equal for equal
        models only."""
        runtime, audio = self.runtime, self.audio
        if candidate.runtime == EMULATED:
            return self._recognized(
                key, self._alike(candidate), lambda: self._installed(candidate, inputs)
            )
        clips = audio.read(audio.data.test)
        weights, chosen = self._calibration.packed(candidate), RUNTIMES[candidate.runtime]
        rows = audio.study(candidate).rows
        with chosen.open(runtime.traced, weights, runtime.model, rows) as recognize:
            return recognize(clips, audio.data.language)

    def _alike(self, candidate: m.Candidate) -> list[ClientData]:
        """Return the clients that are tested with a candidate together: those of the group whose
        devices have the same limits, if it depends on nobody's clips, nor on chance."""
        runtime, own = self.runtime, [self.audio.data]
        if candidate.tuned_on != NO_CLIENT or candidate.rounded_here or runtime.trimmed.reserve:
            return own
        if candidate.name in runtime.drawn:  # a plan of its own for each client
            return own
        mine = _plans_of(runtime.devices[self.audio.data.key])
        return [d for d in self.audio.group if _plans_of(runtime.devices[d.key]) == mine]

    def _recognized(
        self,
        what: Hashable,
        group: Sequence[ClientData],
        opened: Callable[[], AbstractContextManager[SpeechModel]],
    ) -> list[Hypothesis]:
        """Return what a model hears in the test clips of this client, and keep for later what it
        hears in those of a group.

        Args:
            what: names the model among all that are tested.
            group: clients that it is tested on together, this one among them.
            opened: returns a context in which the model is ready.
        """
        audio = self.audio

        def together(group: Sequence[ClientData]) -> dict[str, list[Hypothesis]]:
            read = audio.read_together(group, lambda data: data.test)
            clips = [Clips(clips, audio.data.language) for clips in read.values()]
            with opened() as model:
                heard = recognize_together(model, clips, joined=joins(model))
            return dict(zip(read, heard, strict=True))

        def alone() -> list[Hypothesis]:
            clips = audio.read(audio.data.test)
            with opened() as model:
                return recognize_clips(model, clips, audio.data.language)

        cache = small_results(self.runtime, audio.data)
        return shared(cache, ("heard", what), group, audio.data, together, alone)

    @contextmanager
    def _installed(
        self, candidate: m.Candidate, inputs: tuple[InputFormat, ...]
    ) -> Iterator[SpeechModel]:
        """Put a candidate's weights and input formats in place while open; yield the model."""
        runtime = self.runtime
        layers = runtime.model.layers
        unpacked = {
            layer.name: self._calibration.unpacked(candidate, i) for i, layer in enumerate(layers)
        }
        runtime.study.switch.install(
            {name: layer.weight for name, layer in unpacked.items()},
            runtime.study.leftovers,
            {layer.name: how for layer, how in zip(layers, inputs, strict=True)},
            {name: layer.integers for name, layer in unpacked.items()},
            self.audio.study(candidate).rows,
        )
        try:
            yield runtime.model
        finally:
            runtime.study.switch.restore()


def _plans_of(limits: Limits) -> tuple[int, tuple[int, ...]]:
    """Return what a plan depends on of a device."""
    return limits.budget_bytes, limits.bit_depths
