"""One device: its clips, its budget, and what it does with the models that it is sent."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from flwr.app import Message

from clients.asked import check_asked
from clients.hearing import PUBLIC, Hearing, seconds
from clients.release import released
from clients.workbench import Workbench
from fedsim import messages as m
from fedsim.base.seeds import client_rng
from fedsim.errors import FedsimError
from fedsim.limits import check_size, most_bytes, most_members, most_models
from fedsim.quant import modelfile
from fedsim.quant.activations import Range
from fedsim.quant.bank import UnpackedLayer, from_blob
from fedsim.quant.calibration import NO_USER_DATA, calibrate_layer
from fedsim.quant.modelfile import ModelFile
from fedsim.quant.sensitivity import quantiles, sense, sense_and_quantiles
from fedsim.speech.corpus import ClientData, require_clips
from fedsim.speech.models.base import (
    transcribe_clips,
)
from fedsim.speech.scoring import Errors, count_correct, count_errors, interval, total
from fedsim.study import model_manifest

R = TypeVar("R", bound=m.Message)


@dataclass(frozen=True)
class Device:
    """A client at work. It holds nothing: what is worth keeping lies on the workbench.

    `mode` says how it holds the full-precision model (`fedsim.quant.memory`).
    """

    bench: Workbench
    data: ClientData
    mode: str = "full"

    @property
    def _hearing(self) -> Hearing:
        return Hearing(self.bench, self.data, self.mode)

    def read(self, kind: type[R], message: Message) -> R:
        """Return a message of the server's as its type.

        Raises `FedsimError` for one too large or odd, or that asks for more than the scenario says.
        """
        bench = self.bench
        most = most_bytes(
            kind,
            len(bench.model.layers),
            models=most_models(bench.scenario),
            packed=int(bench.sizes.layer_bytes.max(axis=1).sum()),
            members=most_members(bench.scenario),
        )
        check_size(kind, message.content, most, "the server")
        request = m.from_record(kind, message.content, "the server")
        check_asked(bench.scenario, self.data.key, request)
        return request

    def sense(self, request: m.SenseRequest) -> m.Summary:
        """Observe the tuning clips once; return the profile and what the scenario releases."""
        bench, limits = self.bench, self.bench.devices[self.data.key]
        require_clips(self.data, bench.scenario.corpus)
        values, spread, payload = np.empty(0), np.empty(0), b""
        if bench.scenario.privacy.release == "values":
            values, spread = self._sensed(request)
        elif request.measure:
            payload = released(
                bench, self.data.key, request, lambda: self.sensitivity(request.measure)
            )
        return m.Summary(
            client=self.data.key,
            budget_bytes=limits.budget_bytes,
            bit_depths=limits.bit_depths,
            clips=len(self.data.tuning),
            sensitivity=tuple(values.tolist()),
            quantiles=tuple(spread.ravel().tolist()),
            workload=self._hearing.workload() if request.workload else (),
            payload=payload,
        )

    def sensitivity(self, measure: str) -> np.ndarray:
        """Return what the tuning clips say of each layer, float64 (L,); it stays on the device."""
        return self._hearing.sense(lambda model, clips: sense(model, clips, measure))

    def _sensed(self, request: m.SenseRequest) -> tuple[np.ndarray, np.ndarray]:
        """Return the sensitivities (L,) and quantiles (L, Q) that were asked for, else empty."""
        measure, hearing = request.measure, self._hearing
        if measure and request.quantiles:
            return hearing.sense(lambda model, clips: sense_and_quantiles(model, clips, measure))
        if measure:
            return self.sensitivity(measure), np.empty(0)
        if request.quantiles:
            return np.empty(0), hearing.sense(quantiles)
        return np.empty(0), np.empty(0)

    def personalize(self, delivery: m.Delivery) -> m.Receipt:
        """Calibrate each delivered model, store it, check its size."""
        self._keep(delivery.layers)
        sizes, flat = [], []
        for candidate, ranges in self._calibrated(delivery.candidates):
            sizes.append(self._store(candidate, ranges))
            if delivery.return_ranges:
                flat += _flatten(ranges)
        return m.Receipt(self.data.key, tuple(sizes), tuple(flat))

    def evaluate(self, evaluation: m.Evaluation) -> m.Scores:
        """Transcribe the test clips with each candidate; return error counts, never a
        transcript."""
        bench = self.bench
        self._keep(evaluation.layers)
        clips = self._hearing.read(self.data.test)
        references = [u.text or "" for u in self.data.test]
        counted: dict[tuple, list[Errors]] = {}  # equal models are tested once
        results: list[list[Errors]] = []  # of each model, the counts of each clip
        sizes: list[int] = []

        def test() -> list[Errors]:
            hypotheses = transcribe_clips(bench.model, clips, self.data.language)
            count = count_correct if bench.model.task == "classify" else count_errors
            return [count([r], [h]) for r, h in zip(references, hypotheses, strict=True)]

        if evaluation.full_precision:
            results.append(test())
            sizes.append(bench.switch.full_bytes())
        for candidate, ranges in self._calibrated(evaluation.candidates):
            key = (candidate.blobs, ranges)
            if key not in counted:
                with self._installed(candidate, ranges):
                    counted[key] = test()
            results.append(counted[key])
            sizes.append(bench.sizes.total(candidate.bits))
        scores = self._scores(results, sizes, clip_counts=evaluation.clip_counts)
        return replace(scores, workload=(seconds(clips),)) if evaluation.workload else scores

    def _keep(self, layers: Iterable[bytes]) -> None:
        """Put the packed layers that a message brought where the device looks for them."""
        for layer in layers:
            self.bench.weights.store.put(layer)

    def _scores(
        self, results: list[list[Errors]], sizes: list[int], *, clip_counts: bool
    ) -> m.Scores:
        """Return what leaves the device of its counts: sums and an interval for each model."""
        seed, key = self.bench.scenario.seed, self.data.key
        classifier = self.bench.model.task == "classify"
        # The same resamples for every model, so that chance hits them alike.
        ends = [
            interval(clips, client_rng(seed, key, "interval"), classify=classifier)
            for clips in results
        ]
        sums = [total(clips) for clips in results]
        words, classes = ([], sums) if classifier else (sums, [])
        each = [clip for clips in results for clip in clips] if clip_counts else []
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
            clip_wrong=tuple(1 - e.correct if classifier else e.errors for e in each),
            clip_of=tuple(1 if classifier else e.words for e in each),
        )

    def _calibrated(
        self, candidates: tuple[m.Candidate, ...]
    ) -> Iterator[tuple[m.Candidate, tuple[Range | None, ...]]]:
        """Yield each candidate with its activation ranges: those it came with, or its own."""
        bare = [c for c in candidates if not c.ranges]
        public = self._calibrate(PUBLIC, [c for c in bare if c.calibration in NO_USER_DATA])
        own = self._calibrate(self.data.key, [c for c in bare if c.calibration not in NO_USER_DATA])
        for candidate in candidates:
            if candidate.ranges:
                yield candidate, self._given(candidate)
            else:
                known = public if candidate.calibration in NO_USER_DATA else own
                depths = enumerate(candidate.bits)
                yield candidate, tuple(known[candidate.calibration, i, b] for i, b in depths)

    def _calibrate(
        self, source: str, candidates: list[m.Candidate]
    ) -> dict[tuple[str, int, int], Range | None]:
        """Return (calibration, layer index, bit depth) -> range, for all that `candidates` need.

        `source` is whose clips are observed. A layer's range depends on its own bit depth, not on
        the rest of the plan: candidates share it, and one look at the clips serves them all.
        """
        bench = self.bench
        known = bench.remember(("ranges", self.mode, source, self.data.language), dict)
        missing = {
            (c.calibration, i, b): c
            for c in candidates
            for i, b in enumerate(c.bits)
            if (c.calibration, i, b) not in known
        }
        if not missing:
            return known
        seen = self._hearing.seen(source, {c.calibration for c in candidates})
        with torch.inference_mode():
            for (calibration, index, bits), candidate in missing.items():
                layer = bench.model.layers[index]
                known[calibration, index, bits] = (
                    calibrate_layer(
                        calibration,
                        layer,
                        bench.modules[layer.name],
                        seen[layer.name],
                        self._unpacked(candidate, index).weight,
                        bench.scenario.quantization.activation_bits,
                    )
                    if layer.name in seen
                    else None
                )
        return known

    def _unpacked(self, candidate: m.Candidate, index: int) -> UnpackedLayer:
        """Return a candidate's layer, shared with every other client in this process."""
        bench = self.bench
        return bench.weights.layer(
            candidate.blob(index),
            bench.model.layers[index],
            candidate.bits[index],
            bench.scenario.quantization.weights,
        )

    @contextmanager
    def _installed(
        self, candidate: m.Candidate, ranges: tuple[Range | None, ...]
    ) -> Iterator[None]:
        """Put a candidate's weights and ranges in place while open."""
        bench = self.bench
        layers = bench.model.layers
        unpacked = {layer.name: self._unpacked(candidate, i) for i, layer in enumerate(layers)}
        bench.switch.install(
            {name: layer.weight for name, layer in unpacked.items()},
            bench.leftovers,
            {a.name: r for a, r in zip(layers, ranges, strict=True) if r is not None},
            bench.scenario.quantization.activation_bits,
            {name: layer.integers for name, layer in unpacked.items()},
        )
        try:
            yield
        finally:
            bench.switch.restore()

    def _given(self, candidate: m.Candidate) -> tuple[Range | None, ...]:
        """Return the ranges that a candidate came with."""
        layers = len(self.bench.model.layers)
        if len(candidate.ranges) != 2 * layers:
            raise FedsimError(
                f"client {self.data.key!r} was sent {len(candidate.ranges)} numbers for the "
                f"activation ranges of {layers} layers"
            )
        pairs = zip(candidate.ranges[::2], candidate.ranges[1::2], strict=True)
        return tuple(None if math.isnan(low) else Range(low, high) for low, high in pairs)

    def _store(self, candidate: m.Candidate, ranges: tuple[Range | None, ...]) -> int:
        """Write the candidate's model file if the scenario keeps it; return its size in bytes.

        Sizes are known without a file, exactly (`modelfile.model_sizes`).
        """
        bench = self.bench
        size = bench.sizes.total(candidate.bits)
        if bench.scenario.save_models:
            size = self._write(candidate, ranges)
        budget = bench.devices[self.data.key].budget_bytes
        if size > budget:
            raise FedsimError(
                f"client {self.data.key!r}: the file of {candidate.name} takes {size:,} bytes, "
                f"more than the budget of {budget:,}; this is a defect of the planner, please "
                f"report it"
            )
        return size

    def _write(self, candidate: m.Candidate, ranges: tuple[Range | None, ...]) -> int:
        bench, scenario = self.bench, self.bench.scenario
        granularity = scenario.quantization.weights
        weights = tuple(
            from_blob(bench.weights.store.get(candidate.blob(i)), layer, b, granularity)
            for i, (layer, b) in enumerate(zip(bench.model.layers, candidate.bits, strict=True))
        )
        manifest = model_manifest(scenario, bench.model, candidate.bits)
        file = ModelFile(manifest, weights, ranges, bench.stored)
        path = bench.run_dir / "models" / model_name(self.data.key, candidate.name)
        modelfile.write(path, bench.model.layers, file)
        return os.path.getsize(path)


def model_name(client: str, candidate: str) -> str:
    """Return the file name of a client's model: readable, and distinct for distinct clients."""
    text = f"{client}-{candidate}"
    plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in text)
    if plain != text:
        plain += "-" + hashlib.sha256(text.encode()).hexdigest()[:8]
    return plain + modelfile.SUFFIX


def _flatten(ranges: tuple[Range | None, ...]) -> list[float]:
    return [x for r in ranges for x in ((math.nan, math.nan) if r is None else (r.low, r.high))]
