"""A client's clips, their pseudo-labels, and the layer statistics collected from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from fedsim.errors import AudioError, FedsimError
from fedsim.protocol import messages as m
from fedsim.quant.calibrators import CALIBRATORS, needs, on_user_data
from fedsim.quant.model import Batch
from fedsim.quant.moments import LayerMoments, Moments
from fedsim.quant.observe import LayerObservation, LayerObservations
from fedsim.quant.profile import LayerProfile
from fedsim.scenario.cells import all_cells, table_rounding
from fedsim.scenario.methods import NO_CLIENT
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.clips import ClientData, Utterance, read_utterance
from fedsim.speech.models.base import SpeechModel, own_tokens, public_signal
from fedsim.speech.public_model import own_losses
from fedsim.speech.tuning import TuningPass
from fedsim.study.model import StudyModel
from fedsim_clients.runtime import Runtime

PUBLIC = ""
"""In place of a client's key: the public signal."""

T = TypeVar("T")


@dataclass(frozen=True)
class ClientAudio:
    """One client's audio, and what the full-precision model computes from it.

    `mode` says how its device holds the model, one of `fedsim.quant.memory.MODES`; pseudo-labels
    come from the model in the same mode.
    """

    runtime: Runtime
    data: ClientData
    mode: str = "full"

    def read(self, utterances: Sequence[Utterance]) -> list[np.ndarray]:
        """Return the clips of utterances, float32 (samples,); `AudioError` names the client."""
        convert = self.runtime.scenario.corpus.convert

        def clip(utterance: Utterance) -> np.ndarray:
            key = self.data.key, utterance.key
            return self.runtime.clips.get(key, lambda: read_utterance(utterance, convert=convert))

        try:
            return [clip(utterance) for utterance in utterances]
        except AudioError as error:
            raise AudioError(f"client {self.data.key!r}: {error}") from error

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

    def sense(self, sense: Callable[[SpeechModel, Iterator[Batch]], T]) -> T:
        """Return the result of `sense` on the model and the tuning clips, in one pass over them.

        What calibration and rounding will need is recorded in the same pass and cached.
        """
        runtime, tuning = self.runtime, self._tuning(self.data.key)
        following = {c for method in runtime.scenario.methods for c in method.calibration}
        rounds = any(cell.rounded_by_device for cell in all_cells(runtime.scenario))
        with runtime.sensing(self.mode):
            passed = tuning.sense(sense, following, moments=rounds)
        observed, moments = passed.observed, passed.moments
        if observed is not None:
            rows = needs(on_user_data(following)).rows
            runtime.observations.get(self._key(rows), lambda: LayerObservations(observed))
        if moments is not None:
            runtime.moments.get((self.data.key, self.mode), lambda: Moments(moments))
        return passed.found

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

        def record() -> Moments:
            tuning = self._tuning(self.data.key)
            with runtime.sensing(self.mode):
                passed = tuning.observe((), moments=True)
            assert passed.moments is not None
            return Moments(passed.moments)

        return runtime.moments.get((self.data.key, self.mode), record).layers

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

        def observe() -> LayerObservations:
            tuning = self._tuning(source)
            with runtime.sensing(self.mode):
                return LayerObservations(tuning.observe(calibrations).observed or {})

        if source == PUBLIC or wanted.fisher:
            return observe().layers
        return runtime.observations.get(self._key(wanted.rows), observe).layers

    def _key(self, rows: bool) -> tuple[str, str, bool]:
        return self.data.key, self.mode, rows

    def _tuning(self, source: str) -> TuningPass:
        """Return this client's tuning clips, or the public signal, with pseudo-labels."""
        tokens = self._tokens(source)
        return TuningPass(self.runtime.model, self._clips(source), tokens, self.data.language)

    def _clips(self, source: str) -> list[np.ndarray]:
        return public_signal() if source == PUBLIC else self.read(self.data.tuning)

    def _tokens(self, source: str) -> list[torch.Tensor] | None:
        """Return the pseudo-labels of a source's clips, None where the model needs none."""
        runtime, language = self.runtime, self.data.language

        def label() -> list[torch.Tensor] | None:
            with runtime.sensing(self.mode):
                return own_tokens(runtime.model, self._clips(source), language)

        return runtime.remember(("tokens", self.mode, source, language), label)


def seconds(clips: Sequence[np.ndarray]) -> float:
    """Return the total length of clips in seconds."""
    return sum(len(clip) for clip in clips) / SAMPLE_RATE
