"""What the clock must know of a model: bytes to send and to hold, MACs of its layers."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.quant.layers import Layer


@dataclass(frozen=True)
class ModelCost:
    """Bytes and MACs of a model and of each of its L layers."""

    layers: tuple[Layer, ...]
    layer_bytes: dict[int, tuple[int, ...]]
    """Bit depth -> bytes of each packed layer, (L,)."""
    rest_bytes: int
    """Of a model file besides its layers."""
    full_bytes: int
    """Of the full-precision model."""
    proxy_bytes: int
    """Of the model with every layer at 8 bits, on which a device may sense."""
    proxy_is_model: bool
    """Whether the proxy's layers are those of a model at 8 bits, to the byte: what a device holds
    of them it need not fetch again."""
    peaks: dict[str, int]
    """Sensing mode -> the most bytes in memory at once, of weights and activations."""
    clip_macs: tuple[float, ...]
    """MACs of each layer in a pass over one clip, besides those for its seconds, (L,)."""
    second_macs: tuple[float, ...]
    """And for each second of audio, (L,)."""
    token_macs: tuple[float, ...]
    """And for each token of the decoder, (L,)."""
    batch: int
    """Clips in one pass: a streamed model is read once for all of them."""

    def macs(self, clips: float, seconds: float, tokens: float) -> np.ndarray:
        """Return the MACs of each layer in a pass over so much, float64 (L,)."""
        clip, second, token = map(np.asarray, (self.clip_macs, self.second_macs, self.token_macs))
        return np.maximum(clip * clips + second * seconds + token * tokens, 0)

    def streamed_bytes(self, clips: float, tokens: float = 0.0) -> float:
        """Return the bytes read by one pass over a streamed model.

        `tokens` are those that the pass writes one by one, each with the decoder read anew; 0 for
        a pass that is told them all.
        """
        weights = np.array([4 * layer.n_weights for layer in self.layers])
        decoder = np.asarray(self.token_macs) > 0
        passes = math.ceil(clips / self.batch)
        steps = max(1.0, tokens / max(clips, 1))
        return float(passes * (weights[~decoder].sum() + steps * weights[decoder].sum()))

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")


def read_cost(path: Path) -> ModelCost:
    """Return what `ModelCost.write` wrote."""
    said = json.loads(path.read_text(encoding="utf-8"))
    layers = tuple(
        Layer(a["name"], a["kind"], tuple(a["shape"]), tuple(a["aliases"]))
        for a in said.pop("layers")
    )
    sizes = {int(bits): tuple(values) for bits, values in said.pop("layer_bytes").items()}
    numbers: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}
    return ModelCost(layers=layers, layer_bytes=sizes, **numbers)
