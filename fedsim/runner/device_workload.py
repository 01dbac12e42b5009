"""What each stage of a round demands of a device: blobs to download, MACs, bytes to read.

It mirrors what a device does in a run (`fedsim_clients/audio.py`): one pass over its clips serves
both sensing and calibration, unless nothing is sensed or calibration needs gradients; a model with
a decoder first labels the clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from fedsim.fleet.devices import FULL, DeviceProfile
from fedsim.fleet.work import Attempt, StageWork
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.study.cost import ModelCost

MODEL, PROXY, REST = "full-precision model", "8-bit proxy", "rest"
PUBLIC = "public clips"
"""Names of blobs that are not packed layers; packed layers are called `layer:bits`."""
GROUPED = ("join", "share", "mask", "unmask")
"""Stages of secure aggregation: their bytes are counted with those of the stage `sense`."""
_PROXY_BITS = 8
_GRADIENT = 3
"""Passes that a forward and a backward pass cost: the latter computes two products per product."""


@dataclass(frozen=True)
class Audio:
    """How much audio a client processes; tokens are those of its tuning clips."""

    clips: float
    seconds: float
    tokens: float
    test_clips: float
    test_seconds: float


def blob_bytes(cost: ModelCost) -> dict[str, int]:
    """Return name -> bytes of every blob of a model, and of that of each language."""
    layers = {
        _blob(i, bits): size
        for bits, sizes in cost.layer_bytes.items()
        for i, size in enumerate(sizes)
    }
    whole = {MODEL: cost.full_bytes, PROXY: cost.proxy_bytes, PUBLIC: cost.public_bytes}
    for language, one in cost.trimmed.items():
        whole[_rest(language)] = one.rest_bytes
        for bits, size in one.layer_bytes.items():
            layers[_blob(one.layer, bits, language)] = size
    others = {
        _of_language(blob, language): size
        for language, one in cost.by_language.items()
        for blob, size in blob_bytes(one).items()
    }
    return whole | {REST: cost.rest_bytes} | layers | others


@cache
def _blob(layer: int, bits: int, language: str = "") -> str:
    # One object for all clients.
    return f"{layer}:{bits}:{language}" if language else f"{layer}:{bits}"


@cache
def _of_language(blob: str, language: str) -> str:
    return f"{blob} ({language})" if language else blob


@cache
def _rest(language: str) -> str:
    return f"{REST}:{language}" if language else REST


@dataclass(frozen=True)
class DeviceWorkload:
    """The work of one client, stage by stage."""

    cost: ModelCost
    profile: DeviceProfile
    mode: str
    """How the device holds the full-precision model (`fedsim.quant.memory`)."""
    audio: Audio
    sent: Mapping[tuple[str, str], int]
    """(stage, direction) -> bytes of its messages."""
    observes: bool
    """Whether it senses its layers."""
    calibration: str
    bits: tuple[int, ...]
    """The plan of its model; empty if it was not sent one."""
    language: str = ""
    """Whose tokens its model file holds; empty if it holds the whole vocabulary."""
    model: str = ""
    """Language whose model it is, where each has its own; else empty."""

    def sense(self, tries: tuple[Attempt, ...]) -> StageWork:
        """Download the full model or its proxy, label the clips if it has a decoder, observe."""
        if not self.observes:
            return self._stage("sense", tries, (), {}, 0.0)
        passes = 1 + self._labels
        return self._stage("sense", tries, self._whole, self._macs(passes), self._read(1, True))

    def personalize(self, tries: tuple[Attempt, ...]) -> StageWork:
        """Download the layers of its plan or round them, pass the clips if not yet done, try
        ranges."""
        if not self.bits:
            return self._stage("personalize", tries, (), {}, 0.0)
        calibrator = CALIBRATORS[self.calibration]
        macs, read = dict[int, float](), 0.0
        blobs: tuple[str, ...] = (
            _rest(self.language),
            *(self._layer(i, b) for i, b in enumerate(self.bits)),
        )
        if self.cost.moments:
            blobs = (MODEL, *((PUBLIC,) if self.cost.public_clips else ()))
            macs[FULL] = self._rounding()
        if not calibrator.user_data:
            return self._stage("personalize", tries, blobs, macs, read)
        if calibrator.fisher or not self.observes:
            labels = self._labels and not self.observes
            for bits, n in self._macs((_GRADIENT if calibrator.fisher else 1) + labels).items():
                macs[bits] = macs.get(bits, 0.0) + n
            read = self._read(1, labels)
            blobs = (*self._whole, *blobs)
        if calibrator.search_macs is not None:
            positions = self._pass() / [layer.n_weights for layer in self.cost.layers]
            macs[FULL] = macs.get(FULL, 0.0) + sum(
                calibrator.search_macs(layer, n)
                for layer, n in zip(self.cost.layers, positions.tolist(), strict=True)
            )
        return self._stage("personalize", tries, blobs, macs, read)

    def evaluate(self, tries: tuple[Attempt, ...]) -> StageWork:
        """Transcribe the test clips with its model, each layer at its bit depth."""
        audio, macs = self.audio, dict[int, float]()
        tokens = audio.tokens * audio.test_seconds / audio.seconds if audio.seconds else 0.0
        test = audio.test_clips, audio.test_seconds, tokens
        each = self.cost.tested_macs(*test, self.language)
        for depth, n in zip(self.bits, each.tolist(), strict=False):
            macs[depth] = macs.get(depth, 0.0) + n
        return self._stage("evaluate", tries, (), macs, 0.0)

    def _layer(self, layer: int, bits: int) -> str:
        """The blob of a packed layer of its model."""
        trimmed = self.cost.trimmed.get(self.language)
        own = trimmed is not None and trimmed.layer == layer
        return _blob(layer, bits, self.language if own else "")

    @property
    def _whole(self) -> tuple[str, ...]:
        """The blobs of the model on which it senses."""
        if self.mode != "proxy":
            return (MODEL,)
        if self.cost.proxy_is_model:
            return (REST, *(_blob(i, _PROXY_BITS) for i in range(len(self.cost.layers))))
        return (PROXY,)

    def _rounding(self) -> float:
        """Return the MACs of rounding the model on the device: second moments of its own clips, in
        the pass that senses if there is one, those of public clips for a blend, and the codes."""
        cost, audio = self.cost, self.audio
        macs = cost.rounding_macs(self.language) + cost.moment_macs(
            audio.clips, audio.seconds, audio.tokens
        )
        if not self.observes and not CALIBRATORS[self.calibration].user_data:
            macs += (1 + self._labels) * float(self._pass().sum())
        if cost.public_clips:
            share = cost.public_seconds / audio.seconds if audio.seconds else 0.0
            public = cost.public_clips, cost.public_seconds, audio.tokens * share
            passes = (1 + self._labels) * float(cost.macs(*public).sum())
            macs += passes + cost.moment_macs(*public)
        return macs

    @property
    def _labels(self) -> bool:
        return self.audio.tokens > 0

    def _pass(self) -> np.ndarray:
        return self.cost.macs(self.audio.clips, self.audio.seconds, self.audio.tokens)

    def _macs(self, passes: int) -> dict[int, float]:
        """Return depth -> MACs of passes over the tuning clips; the proxy computes in 8 bits."""
        speeds, joules = self.profile.macs_per_s, self.profile.joules_per_gmac
        proxy = self.mode == "proxy" and _PROXY_BITS in speeds and _PROXY_BITS in joules
        return {_PROXY_BITS if proxy else FULL: passes * float(self._pass().sum())}

    def _read(self, passes: int, labels: bool) -> float:
        """Return the bytes read from storage; zero for a model that fits into memory."""
        if self.mode != "streamed":
            return 0.0
        clips, tokens = self.audio.clips, self.audio.tokens
        read = passes * self.cost.streamed_bytes(clips)
        return read + (self.cost.streamed_bytes(clips, tokens) if labels and self._labels else 0.0)

    def _stage(
        self,
        stage: str,
        tries: tuple[Attempt, ...],
        blobs: tuple[str, ...],
        macs: dict[int, float],
        read: float,
    ) -> StageWork:
        stages = (stage, *GROUPED) if stage == "sense" else (stage,)
        down, up = (sum(self.sent.get((s, way), 0) for s in stages) for way in ("down", "up"))
        blobs = tuple(_of_language(blob, self.model) for blob in blobs)
        return StageWork(
            blobs, {depth: n for depth, n in macs.items() if n}, round(read), down, up, tries
        )
