"""Cosine calibration: its time, and its search compared with an exhaustive one.

    python -m benchmarks.cosine_search

A wav2vec2 of 44 layers and 3.1 M parameters, 16 clips of 1.6 s, weights at 4 and 5 bits,
activations at 8 and at 4 bits. Prints the seconds of observing and searching, the ratio of the
search to an exhaustive one over all 100 candidates, and the largest loss of cosine of any layer.
"""

from __future__ import annotations

import time
from functools import partial

import torch

from benchmarks.fixtures import noise, small_wav2vec2
from fedsim.quant.calibration import (
    CANDIDATES,
    LayerWeights,
    calibrate_layer,
    cosine_score,
    shrink,
)
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.observe import observe
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import dequantize_weight
from fedsim.speech.models.base import tuning_batches

FORMAT = WeightFormat("per_channel")


def main() -> None:
    """Run the comparison."""
    torch.set_num_threads(2)
    model = small_wav2vec2()
    clips = noise(16, 1.6)
    full = switch_of(model).full_weights()
    owners = dict(model.module.named_modules())
    quantized = {
        layer.name: dequantize_weight(quantize_weight(full[layer.name], 4 + i % 2, FORMAT))
        for i, layer in enumerate(model.layers)
    }
    start = time.perf_counter()
    seen = observe(model, tuning_batches(model, clips, None))
    observing = time.perf_counter() - start
    for bits in (8, 4):
        start = time.perf_counter()
        chosen = {
            layer.name: calibrate_layer(
                "cosine",
                layer,
                owners[layer.name],
                seen[layer.name],
                partial(quantized.__getitem__, layer.name),
                bits,
            ).range
            for layer in model.layers
        }
        searching = time.perf_counter() - start
        exhaustive = 0.0
        worst = ("", 0.0)
        with torch.inference_mode():
            for layer in model.layers:
                bias = owners[layer.name].bias
                weights = LayerWeights(full[layer.name], quantized[layer.name], bias)
                start = time.perf_counter()
                score = cosine_score(layer, seen[layer.name], weights, bits)
                ranges = [shrink(seen[layer.name], s) for s in range(1, CANDIDATES + 1)]
                best = max(score(r) for r in ranges)
                exhaustive += time.perf_counter() - start
                found = chosen[layer.name]
                assert found is not None
                loss = best - score(found)
                worst = max(worst, (layer.name, loss), key=lambda w: w[1])
        total = observing + searching
        print(
            f"activations at {bits} bits: observing {observing:.2f} s + searching {searching:.2f} "
            f"s = {total:.2f} s; ratio to the exhaustive search {searching / exhaustive:.2f}; "
            f"largest loss of cosine {worst[1]:.1e} ({worst[0] or 'none'})"
        )


if __name__ == "__main__":
    main()
