"""What computing a delivered model in integers saves: its forward passes against those in floats.

    OMP_NUM_THREADS=1 python -m benchmarks.integers

bundled:ctc at 6 bits per channel with 8-bit activations and min-max ranges; synthetic speakers, as
in benchmarks.plan_stability, with four clips each in one batch. The models take turns, speaker by
speaker.
"""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.plan_stability import clips_of
from fedsim.quant.activations import InputFormat, make_range
from fedsim.quant.granularities import PER_CHANNEL
from fedsim.quant.integers import bytes_are_fast, integers_of
from fedsim.quant.observe import observe
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import dequantize_weight
from fedsim.speech.models import load_model
from fedsim.speech.models.base import tuning_batches

SPEAKERS, CLIPS, ROUNDS, BITS = 20, 4, 6, 6


def main() -> None:
    """Print the median time of a forward pass in full precision, in floats and in integers."""
    if not bytes_are_fast():
        raise SystemExit("this processor does not multiply bytes faster than floats")
    torch.set_num_threads(1)
    full, floats, integers = (load_model("bundled:ctc", device="cpu") for _ in range(3))
    speakers = [clips_of(full, number, CLIPS) for number in range(SPEAKERS)]
    batches = [batch for clips in speakers for batch in tuning_batches(full, clips, None)]
    seen = observe(full, batches, rows=False)
    inputs = {name: InputFormat(8, make_range(s.low, s.high)) for name, s in seen.items()}
    weights = switch_of(full).full_weights()
    packed = {
        layer: quantize_weight(weights[layer.name], BITS, PER_CHANNEL) for layer in full.layers
    }
    codes = {layer.name: integers_of(layer, p) for layer, p in packed.items()}
    for model in (floats, integers):
        switch = switch_of(model)
        switch.install(
            {layer.name: dequantize_weight(p) for layer, p in packed.items()},
            switch.full_leftovers(),
            inputs,
            codes if model is integers else None,
        )
    seconds: list[list[float]] = [[], [], []]
    with torch.inference_mode():
        for _ in range(1 + ROUNDS):
            for batch in batches:
                for model, spent in zip((full, floats, integers), seconds, strict=True):
                    began = time.perf_counter()
                    model.forward(batch)
                    spent.append(time.perf_counter() - began)
    # Not the first round, in which oneDNN compiles kernels for each length.
    whole, in_floats, in_integers = (1000 * statistics.median(s[len(batches) :]) for s in seconds)
    print(
        f"a forward pass of {CLIPS} clips: full precision {whole:.1f} ms, delivered in floats "
        f"{in_floats:.1f} ms, in integers {in_integers:.1f} ms, ratio {in_integers / in_floats:.2f}"
    )


if __name__ == "__main__":
    main()
