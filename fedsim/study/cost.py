"""What a model costs a device, for the virtual clock: bytes to send and hold, MACs per layer."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.base.files import write_text
from fedsim.quant.layers import Layer
from fedsim.speech.macs import Macs


@dataclass(frozen=True)
class TrimmedCost:
    """What differs in model files that hold the tokens of one language."""

    layer: int
    """The layer of which they hold some rows."""
    share: float
    """Of its rows, those that are kept."""
    layer_bytes: dict[int, int]
    """Bit depth -> bytes of that layer, packed."""
    rest_bytes: int
    """Bytes of a model file besides its layers."""


@dataclass(frozen=True)
class ModelCost:
    """Bytes and MACs of a model and of each of its L layers."""

    layers: tuple[Layer, ...]
    layer_bytes: dict[int, tuple[int, ...]]
    """Bit depth -> bytes of each packed layer, (L,)."""
    rest_bytes: int
    """Bytes of a model file besides its layers."""
    full_bytes: int
    """Bytes of the full-precision model."""
    proxy_bytes: int
    """Bytes of the model with every layer at 8 bits, on which a device may sense."""
    proxy_is_model: bool
    """Whether the proxy's layers equal those of a model at 8 bits, to the byte, so that a device
    need not fetch them again."""
    peaks: dict[str, int]
    """Sensing mode -> peak bytes of memory, for weights and activations."""
    clip_macs: tuple[float, ...]
    """MACs of each layer per clip, besides those per second of audio and per token, (L,)."""
    second_macs: tuple[float, ...]
    """MACs of each layer per second of audio, (L,)."""
    token_macs: tuple[float, ...]
    """MACs of each layer per token of the decoder, (L,)."""
    batch: int
    """Clips in one pass: a streamed model is read once for all of them."""
    moments: str = ""
    """Whose second moments devices round with, `own` or `blend`; empty if the server rounds."""
    public_bytes: int = 0
    public_clips: int = 0
    public_seconds: float = 0.0
    """Public clips that a device blends its own with."""
    trimmed: dict[str, TrimmedCost] = field(default_factory=dict)
    """By language, where model files hold a part of the vocabulary."""
    by_language: dict[str, ModelCost] = field(default_factory=dict)
    """By language, where clients are served by models of their own; the rest is one of these."""

    def of(self, language: str) -> ModelCost:
        """Return the cost of the model for clients that speak `language`."""
        return self.by_language.get(language, self)

    def moment_macs(self, clips: float, seconds: float, tokens: float) -> float:
        """Return the MACs of recording second moments in a pass: K^2 / 2 for each input of K
        numbers, of which a layer gets one per output position."""
        positions = self.macs(clips, seconds, tokens) / [layer.n_weights for layer in self.layers]
        inputs = np.array([layer.n_weights / layer.channels for layer in self.layers])
        return float((positions * inputs**2 / 2).sum())

    def rounding_macs(self, language: str = "") -> float:
        """Return the MACs of compensated rounding: N K^2 / 2 per weight (N, K), and K^3 / 6 for the
        triangular factor of its moments. A layer with the tokens of a language is rounded without.
        """
        n = np.array([layer.channels for layer in self.layers], float)
        k = np.array([layer.n_weights / layer.channels for layer in self.layers])
        macs = n * k**2 / 2 + k**3 / 6
        if language:
            macs[self.trimmed[language].layer] = 0
        return float(macs.sum())

    def tested_macs(self, clips: float, seconds: float, tokens: float, language: str) -> np.ndarray:
        """Return `macs` of a model with the tokens of a language, or of all if it is empty."""
        macs = self.macs(clips, seconds, tokens)
        if language:
            macs[self.trimmed[language].layer] *= self.trimmed[language].share
        return macs

    def macs(self, clips: float, seconds: float, tokens: float) -> np.ndarray:
        """Return the MACs of each layer in a pass over this much audio, float64 (L,)."""
        return Macs(self.clip_macs, self.second_macs, self.token_macs).of(clips, seconds, tokens)

    def streamed_bytes(self, clips: float, tokens: float = 0.0) -> float:
        """Return the bytes that a pass with a streamed model reads from storage.

        `tokens` counts those that the decoder generates one by one, each with the decoder read
        again; 0 for a teacher-forced pass.
        """
        weights = np.array([4 * layer.n_weights for layer in self.layers])
        decoder = np.asarray(self.token_macs) > 0
        passes = math.ceil(clips / self.batch)
        steps = max(1.0, tokens / max(clips, 1))
        return float(passes * (weights[~decoder].sum() + steps * weights[decoder].sum()))

    def write(self, path: Path) -> None:
        """Write this as JSON."""
        write_text(path, json.dumps(asdict(self)) + "\n")


def read_cost(path: Path) -> ModelCost:
    """Return what `ModelCost.write` wrote."""
    return _cost(json.loads(path.read_text(encoding="utf-8")))


def _cost(fields: dict[str, Any]) -> ModelCost:
    layers = tuple(
        Layer(layer["name"], layer["kind"], tuple(layer["shape"]), tuple(layer["aliases"]))
        for layer in fields.pop("layers")
    )
    sizes = {int(bits): tuple(values) for bits, values in fields.pop("layer_bytes").items()}
    fields["trimmed"] = {
        language: TrimmedCost(
            **one | {"layer_bytes": {int(bits): n for bits, n in one["layer_bytes"].items()}}
        )
        for language, one in fields["trimmed"].items()
    }
    fields["by_language"] = {k: _cost(one) for k, one in fields["by_language"].items()}
    numbers: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return ModelCost(layers=layers, layer_bytes=sizes, **numbers)
