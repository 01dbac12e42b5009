"""A client's clips, their pseudo-labels, and the layer statistics collected from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedsim.errors import AudioError, FedsimError
from fedsim.protocol import messages as m
from fedsim.quant.calibrators import CALIBRATORS, needs, on_user_data
from fedsim.quant.model import device_of
from fedsim.quant.moments import LayerMoments, Moments
from fedsim.quant.observe import LayerObservation, LayerObservations
from fedsim.quant.onepass import Passed
from fedsim.quant.profile import LayerProfile
from fedsim.quant.sensitivity import Sensed, Sensing
from fedsim.scenario.cells import all_cells, table_rounding
from fedsim.scenario.methods import NO_CLIENT
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.clips import ClientData, Utterance, read_utterance
from fedsim.speech.models.base import own_tokens, public_signal
from fedsim.speech.public_model import own_losses
from fedsim.speech.together import Clips, joins, sense_together, tokens_together
from fedsim.speech.tuning import TuningPass
from fedsim.study.model import StudyModel
from fedsim_clients.runtime import Runtime
from fedsim_clients.together import GroupResults, group_of, key_of, shared, small_results

PUBLIC = ""
"""In place of a client's key: the public signal."""


@dataclass(frozen=True)
class ClientAudio:
    """One client's audio, and what the full-precision model computes from it.

    `mode` says how its device holds the model, one of `fedsim.quant.memory.MODES`; pseudo-labels
    come from the model in the same mode. `alone` says that it shares no forward pass.
    """

    runtime: Runtime
    data: ClientData
    mode: str = "full"
    alone: bool = False

    @property
    def group(self) -> list[ClientData]:
        """The clients whose clips share passes of the full-precision model, this one among them."""
        together = not self.alone and self.mode == "full"
        return group_of(self.runtime, self.data) if together else [self.data]

    def read(self, utterances: Sequence[Utterance]) -> list[np.ndarray]:
        """Return the clips of utterances, float32 (samples,); `AudioError` names the client."""
        try:
            return [self.runtime.clips.get(*self._clip(utterance)) for utterance in utterances]
        except AudioError as error:
            raise AudioError(f"client {self.data.key!r}: {error}") from error

    def read_together(
        self, group: Sequence[ClientData], which: Callable[[ClientData], Sequence[Utterance]]
    ) -> dict[str, list[np.ndarray]]:
        """Return client key -> the clips of the utterances that `which` returns, for the clients of
        a group whose clips can be read: the others fail when they are asked."""
        found = {}
        for data in group:
            with suppress(AudioError):
                found[data.key] = self.of(data).read(which(data))
        return found

    def read_ahead(self) -> None:
        """Begin to read the test clips of the group while a GPU computes on the tuning clips. On
        the processor no thread does this: it would take cores from the model."""
        if device_of(self.runtime.model).type != "cpu":
            everyone = [self.of(data) for data in self.group]
            self.runtime.clips.read_ahead([a._clip(u) for a in everyone for u in a.data.test])

    def _clip(self, utterance: Utterance) -> tuple[tuple[str, str], Callable[[], np.ndarray]]:
        """Return the key of a clip and what reads it."""
        convert = self.runtime.scenario.corpus.convert
        key = self.data.key, utterance.key
        return key, lambda: read_utterance(utterance, convert=convert)

    def study(self, candidate: m.Candidate | None = None) -> StudyModel:
        """Return the model as its files store it: with the tokens of the client's language and of
        its own transcripts, which stay on the device.

        A `candidate` of another client has no own tokens; nor has any where the device does not
        hold the full-precision rows, since to fetch some of them would show which they are.
        """
        runtime, language = self.runtime, self.data.language
        trimmed = runtime.trimmed
        foreign = candidate is not None and candidate.tuned_on not in (self.data.key, NO_CLIENT)
        if not trimmed.reserve or foreign or self.mode == "proxy":
            return trimmed.of(language)
        return runtime.remember(
            ("rows", self.mode, self.data.key),
            lambda: trimmed.own(language, self._tokens(self.data.key) or ()),
        )

    def workload(self) -> tuple[float, float]:
        """Return the seconds of the tuning clips, and the tokens of their pseudo-labels."""
        tokens = self._tokens(self.data.key) or ()
        return seconds(self.read(self.data.tuning)), float(sum(len(row) for row in tokens))

    def sense(self, sensing: Sensing) -> Sensed:
        """Return what the model's layers show of the tuning clips, in one pass over them.

        What calibration and rounding will need is recorded in the same pass and cached.
        """
        runtime, moments = self.runtime, self._rounds
        following = self._following

        def alone() -> Sensed:
            tuning = self._tuning(self.data.key)
            self.read_ahead()
            with runtime.sensing(self.mode):
                passed = tuning.sense(sensing.run, following, moments=moments)
            return self._keep(passed)

        def together(group: Sequence[ClientData]) -> dict[str, Sensed]:
            found = self._passed_together(group, sensing, following, moments=moments)
            self._keep_together(group, found)
            return {key: passed.found for key, passed in found.items()}

        cache, what = small_results(runtime, self.data), ("sensed", sensing)
        return shared(cache, what, self.group, self.data, together, alone)

    def _passed_together(
        self,
        group: Sequence[ClientData],
        sensing: Sensing,
        calibrations: Collection[str],
        *,
        moments: bool = False,
    ) -> dict[str, Passed[Sensed]]:
        """Return client key -> what a pass that a group's tuning clips share gives."""
        model, language = self.runtime.model, self.data.language
        read = self.read_together(group, lambda data: data.tuning)
        readable = [self.of(data) for data in group if data.key in read]
        clips = [Clips(read[one.data.key], language, one._tokens(one.data.key)) for one in readable]
        self.read_ahead()
        passed = sense_together(
            model, clips, sensing, calibrations, moments=moments, joined=joins(model)
        )
        return dict(zip(read, passed, strict=True))

    def of(self, data: ClientData) -> ClientAudio:
        """Return the audio of another client of the group."""
        return replace(self, data=data)

    @property
    def _following(self) -> set[str]:
        """The calibrations that will follow a pass."""
        return {c for method in self.runtime.scenario.methods for c in method.calibration}

    @property
    def _rounds(self) -> bool:
        """Whether devices will round weights on their own second moments."""
        return any(cell.rounded_by_device for cell in all_cells(self.runtime.scenario))

    def _keep(self, passed: Passed[Sensed]) -> Sensed:
        """Cache what a pass recorded for calibration and rounding; return what it sensed."""
        runtime, observed, moments = self.runtime, passed.observed, passed.moments
        if observed is not None:
            rows = needs(on_user_data(self._following)).rows
            runtime.observations.get(
                (self.data.key, self.mode, rows), lambda: LayerObservations(observed)
            )
        if moments is not None:
            runtime.moments.get((self.data.key, self.mode), lambda: Moments(moments))
        return passed.found

    def _keep_together(self, group: Sequence[ClientData], found: dict[str, Passed[Sensed]]) -> None:
        """Cache what a group's pass recorded for calibration and rounding."""
        runtime, rows = self.runtime, needs(on_user_data(self._following)).rows
        observed = {k: LayerObservations(p.observed) for k, p in found.items() if p.observed}
        moments = {k: Moments(p.moments) for k, p in found.items() if p.moments}
        if observed:
            key = key_of(("observed", rows), group)
            runtime.observations.get(key, lambda: GroupResults(observed))
        if moments:
            runtime.moments.get(key_of("moments", group), lambda: GroupResults(moments))

    def losses(self) -> LayerProfile:
        """Return what each layer's bit depth costs on the tuning clips: a table (L, D).

        Raises `FedsimError` where the device does not hold the whole model.
        """
        runtime, scenario = self.runtime, self.runtime.scenario
        if self.mode != "full":
            raise FedsimError(
                f"client {self.data.key!r}: losses: own needs the whole model in memory, but the"
                f" device senses in mode {self.mode!r}; use losses: public, or give the device more"
                f" memory"
            )
        return own_losses(
            self._tuning(self.data.key),
            table_rounding(scenario),
            runtime.study.weight_format,
            runtime.study.sizes.depths,
        )

    def moments(self) -> dict[str, LayerMoments]:
        """Return layer name -> second moments of the tuning clips; they never leave the device."""
        runtime = self.runtime

        def alone() -> Moments:
            tuning = self._tuning(self.data.key)
            with runtime.sensing(self.mode):
                passed = tuning.observe((), moments=True)
            assert passed.moments is not None
            return Moments(passed.moments)

        def together(group: Sequence[ClientData]) -> dict[str, Moments]:
            found = self._passed_together(group, Sensing(), (), moments=True)
            return {key: Moments(p.moments) for key, p in found.items() if p.moments is not None}

        def kept() -> Moments:
            return runtime.moments.get((self.data.key, self.mode), alone)

        return shared(runtime.moments, "moments", self.group, self.data, together, kept).layers

    def observed(self, source: str, calibrations: set[str]) -> dict[str, LayerObservation]:
        """Return layer name -> the statistics that calibrations need.

        Args:
            source: this client's key, or `PUBLIC`.
            calibrations: names of calibrators.

        Raises:
            FedsimError: if one needs gradients and the device does not hold the whole model.
        """
        runtime, wanted = self.runtime, needs(calibrations)
        if self.mode != "full" and wanted.fisher:
            name = min(name for name in calibrations if CALIBRATORS[name].fisher)
            raise FedsimError(
                f"client {self.data.key!r}: calibration {name!r} needs gradients, and so the whole "
                f"model in memory, but the device senses in mode {self.mode!r}; use cosine or "
                f"minmax, or give the device more memory"
            )

        def alone() -> LayerObservations:
            tuning = self._tuning(source)
            with runtime.sensing(self.mode):
                return LayerObservations(tuning.observe(calibrations).observed or {})

        def together(group: Sequence[ClientData]) -> dict[str, LayerObservations]:
            found = self._passed_together(group, Sensing(), calibrations)
            return {key: LayerObservations(p.observed or {}) for key, p in found.items()}

        def kept() -> LayerObservations:
            return cache.get((source, self.mode, wanted.rows), alone)

        if source == PUBLIC or wanted.fisher:
            return alone().layers
        cache, what = runtime.observations, ("observed", wanted.rows)
        return shared(cache, what, self.group, self.data, together, kept).layers

    def _tuning(self, source: str) -> TuningPass:
        """Return this client's tuning clips, or the public signal, with pseudo-labels."""
        tokens = self._tokens(source)
        return TuningPass(self.runtime.model, self._clips(source), tokens, self.data.language)

    def _clips(self, source: str) -> list[np.ndarray]:
        return public_signal() if source == PUBLIC else self.read(self.data.tuning)

    def _tokens(self, source: str) -> Sequence[torch.Tensor] | None:
        """Return the pseudo-labels of a source's clips, None where the model needs none."""
        runtime, language = self.runtime, self.data.language

        def alone() -> Sequence[torch.Tensor] | None:
            with runtime.sensing(self.mode):
                return own_tokens(runtime.model, self._clips(source), language)

        def together(group: Sequence[ClientData]) -> dict[str, Sequence[torch.Tensor] | None]:
            read = self.read_together(group, lambda data: data.tuning)
            clips = [Clips(clips, language) for clips in read.values()]
            tokens = tokens_together(runtime.model, clips, joined=joins(runtime.model))
            return dict(zip(read, tokens, strict=True))

        def label() -> Sequence[torch.Tensor] | None:
            if source == PUBLIC or not runtime.model.needs_tokens:
                return alone()
            cache = small_results(runtime, self.data)
            return shared(cache, "tokens", self.group, self.data, together, alone)

        return runtime.remember(("tokens", self.mode, source, language), label)


def seconds(clips: Sequence[np.ndarray]) -> float:
    """Return the total length of clips in seconds."""
    return sum(len(clip) for clip in clips) / SAMPLE_RATE
