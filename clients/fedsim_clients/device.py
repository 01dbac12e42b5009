"""One device: senses, calibrates and evaluates, within its own budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
from flwr.app import Message

from fedsim.base.seeds import client_rng
from fedsim.errors import FedsimError
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.protocol.limits import (
    check_size,
    max_members,
    max_message_bytes,
    max_models,
    max_public_bytes,
)
from fedsim.quant.activations import InputFormat
from fedsim.quant.profile import LayerProfile, profile_of
from fedsim.quant.runtimes import EMULATED, RUNTIMES
from fedsim.quant.sensitivity import quantiles, sense, sense_and_quantiles
from fedsim.scenario.cells import LOSSES
from fedsim.speech.clips import ClientData
from fedsim.speech.eligible import require_clips
from fedsim.speech.models.base import Hypothesis, recognize_clips
from fedsim.speech.scoring import Errors, Measured, interval, total
from fedsim_clients.audio import ClientAudio, seconds
from fedsim_clients.calibration import Calibration, flatten
from fedsim_clients.counting import counter, measured_by
from fedsim_clients.guard import check_request
from fedsim_clients.release import released
from fedsim_clients.runtime import Runtime
from fedsim_clients.saving import save_model

R = TypeVar("R", bound=m.Message)
Recognize = Callable[[Sequence[np.ndarray], str | None], list[Hypothesis]]
"""f(clips, language) -> one hypothesis per clip."""


@dataclass(frozen=True)
class Device:
    """One client's device, without state of its own: caches are in the runtime.

    `mode` says how it holds the full-precision model (`fedsim.quant.memory.MODES`).
    """

    runtime: Runtime
    data: ClientData
    mode: str = "full"

    @property
    def audio(self) -> ClientAudio:
        """Its clips, and what the model computes from them."""
        return ClientAudio(self.runtime, self.data, self.mode)

    @property
    def _calibration(self) -> Calibration:
        return Calibration(self.runtime, self.audio)

    def read(self, kind: type[R], message: Message) -> R:
        """Return a message from the server as its type.

        Raises `FedsimError` for one that is too large or malformed, or that requests more than the
        scenario grants.
        """
        runtime = self.runtime
        max_bytes = max_message_bytes(
            kind,
            len(runtime.model.layers),
            models=max_models(runtime.scenario),
            packed=runtime.study.sizes.fixed_bytes
            + int(runtime.study.sizes.layer_bytes.max(axis=1).sum()),
            public=max_public_bytes(runtime.scenario),
            members=max_members(runtime.scenario),
        )
        check_size(kind, message.content, max_bytes, "the server")
        request = codec.from_record(kind, message.content, "the server")
        check_request(runtime.scenario, self.data.key, request)
        return request

    def sense(self, request: m.SenseRequest) -> m.Summary:
        """Observe the tuning clips in one pass; return the device's facts and its release."""
        runtime, limits = self.runtime, self.runtime.devices[self.data.key]
        require_clips(self.data, runtime.scenario.corpus)
        profile, spread, payload = None, np.empty(0), b""
        if runtime.scenario.privacy.chosen.plain:
            profile, spread = self._sensed(request)
        elif request.measure:
            payload = released(
                runtime,
                self.data.key,
                request,
                lambda: self.profile(request.measure).flat,
                runtime.trimmed.of(self.data.language).sizes,
            )
        return m.Summary(
            client=self.data.key,
            budget_bytes=limits.budget_bytes,
            bit_depths=limits.bit_depths,
            clips=len(self.data.tuning),
            sensitivity=() if profile is None else tuple(profile.flat.tolist()),
            quantiles=tuple(spread.ravel().tolist()),
            workload=self.audio.workload() if request.workload else (),
            payload=payload,
            depths=() if profile is None else profile.depths,
            language=(self.data.language or "") if runtime.speaks else "",
        )

    def profile(self, measure: str) -> LayerProfile:
        """Return the layer profile of the tuning clips.

        It stays on the device, unless the scenario releases it.
        """
        if measure == LOSSES:
            return self.audio.losses()
        values = self.audio.sense(lambda model, clips: sense(model, clips, measure))
        return profile_of(values, measure)

    def _sensed(self, request: m.SenseRequest) -> tuple[LayerProfile | None, np.ndarray]:
        """Return the layer profile and quantiles (L, Q); None and empty where not requested."""
        measure, audio = request.measure, self.audio
        if measure == LOSSES and request.quantiles:
            return self.profile(measure), audio.sense(quantiles)
        if measure and request.quantiles:
            values, spread = audio.sense(
                lambda model, clips: sense_and_quantiles(model, clips, measure)
            )
            return profile_of(values, measure), spread
        if measure:
            return self.profile(measure), np.empty(0)
        return None, audio.sense(quantiles) if request.quantiles else np.empty(0)

    def personalize(self, delivery: m.Delivery) -> m.Receipt:
        """Calibrate each delivered model, check its size, write its file if the scenario keeps it.

        Raises `FedsimError` for a model over the budget, and for ranges or layers that do not fit.
        """
        self._keep(delivery.layers)
        sizes, flat, blobs = [], [], b""
        for candidate, inputs in self._calibration.inputs(delivery.candidates):
            sizes.append(self._store(candidate, inputs))
            if delivery.return_models:
                flat += flatten(inputs)
                blobs += self._calibration.put(candidate)
        return m.Receipt(self.data.key, tuple(sizes), tuple(flat), blobs)

    def evaluate(self, evaluation: m.Evaluation) -> m.Scores:
        """Transcribe the test clips with each candidate; return error counts, never transcripts."""
        runtime = self.runtime
        self._keep(evaluation.layers)
        clips = self.audio.read(self.data.test)
        counted: dict[tuple, list[Errors]] = {}  # equal models are tested once
        results: list[list[Errors]] = []  # of each model, the counts of each clip
        sizes: list[int] = []
        measured = measured_by(evaluation, runtime.model.task)
        count = counter(self.data, evaluation, measured)

        def test(recognize: Recognize) -> list[Errors]:
            return count(recognize(clips, self.data.language))

        if evaluation.full_precision:
            results.append(test(partial(recognize_clips, runtime.model)))
            sizes.append(runtime.study.switch.full_bytes())
        for candidate, inputs in self._calibration.inputs(evaluation.candidates):
            study = self.audio.study(candidate)
            rounded = candidate.rounding, candidate.moments, candidate.bits
            how = candidate.runtime, study.rows and study.rows.key
            key = (candidate.blobs or rounded, inputs, *how)
            if key not in counted:
                with self._loaded(candidate, inputs) as recognize:
                    counted[key] = test(recognize)
            results.append(counted[key])
            sizes.append(study.sizes.total(candidate.bits))
        scores = self._scores(results, sizes, measured, evaluation)
        return replace(scores, workload=(seconds(clips),)) if evaluation.workload else scores

    def _keep(self, layers: Iterable[bytes]) -> None:
        """Store the packed layers that a message carried."""
        for layer in layers:
            self.runtime.weights.store.put(layer)

    def _scores(
        self,
        results: list[list[Errors]],
        sizes: list[int],
        measured: Measured,
        evaluation: m.Evaluation,
    ) -> m.Scores:
        """Return what leaves the device of its counts: sums and one interval per model."""
        seed, key = self.runtime.scenario.seed, self.data.key
        # The same resamples for every model, so that intervals are paired.
        ends = [interval(clips, client_rng(seed, key, "interval"), measured) for clips in results]
        sums = [total(clips) for clips in results]
        words, classes = ([], sums) if measured == "accuracy" else (sums, [])
        loops = sums if self.runtime.model.needs_tokens else []
        each = [c.pair(measured) for clips in results for c in clips]
        each = each if evaluation.clip_counts else []
        rare = words if evaluation.rare_beyond else []
        return m.Scores(
            client=key,
            clips=len(self.data.test),
            file_bytes=tuple(sizes),
            errors=tuple(s.errors for s in words),
            words=tuple(s.words for s in words),
            char_errors=tuple(s.char_errors for s in words),
            chars=tuple(s.chars for s in words),
            correct=tuple(s.correct for s in classes),
            low=tuple(low for low, _ in ends),
            high=tuple(high for _, high in ends),
            looped=tuple(s.looped for s in loops),
            looped_errors=tuple(s.looped_errors for s in loops),
            looped_words=tuple(s.looped_words for s in loops),
            clip_wrong=tuple(wrong for wrong, _ in each),
            clip_of=tuple(of for _, of in each),
            rare_errors=tuple(s.rare_errors for s in rare),
            rare_words=tuple(s.rare_words for s in rare),
        )

    @contextmanager
    def _loaded(
        self, candidate: m.Candidate, inputs: tuple[InputFormat, ...]
    ) -> Iterator[Recognize]:
        """Have a candidate ready to recognize clips while open, in its runtime."""
        runtime = self.runtime
        if candidate.runtime == EMULATED:
            with self._installed(candidate, inputs):
                yield partial(recognize_clips, runtime.model)
            return
        weights, chosen = self._calibration.packed(candidate), RUNTIMES[candidate.runtime]
        rows = self.audio.study(candidate).rows
        with chosen.open(runtime.traced, weights, runtime.model, rows) as recognize:
            yield recognize

    @contextmanager
    def _installed(self, candidate: m.Candidate, inputs: tuple[InputFormat, ...]) -> Iterator[None]:
        """Put a candidate's weights and input formats in place while open."""
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
            yield
        finally:
            runtime.study.switch.restore()

    def _store(self, candidate: m.Candidate, inputs: tuple[InputFormat, ...]) -> int:
        """Write the candidate's model file if the scenario keeps it; return its size in bytes.

        The exact size is known without a file (`PackableModel.sizes`).
        """
        runtime = self.runtime
        size = self.audio.study(candidate).sizes.total(candidate.bits)
        if runtime.scenario.save_models:
            size = save_model(self._calibration, candidate, inputs)
        budget = runtime.devices[self.data.key].budget_bytes
        if size > budget:
            raise FedsimError(
                f"client {self.data.key!r}: the file of {candidate.name} takes {size:,} bytes, "
                f"more than the budget of {budget:,}; give both sides the same scenario, or report "
                f"a defect of the planner"
            )
        return size
