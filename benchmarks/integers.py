"""What computing a delivered model in integers saves: its forwards against those by floats.

    OMP_NUM_THREADS=1 python -m benchmarks.integers

bundled:ctc at 6 bits per channel with 8-bit activations and min-max ranges; synthetic speakers, as
in benchmarks.plan_stability, four clips each in one batch. The models by turns, speaker by speaker.
"""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.plan_stability import clips_of
from fedsim.quant.activations import make_range
from fedsim.quant.integers import bytes_are_fast, integers_of
from fedsim.quant.observe import observe
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import dequantize_weight, quantize_weight
from fedsim.speech.models import load_model
from fedsim.speech.models.base import tuning_batches

SPEAKERS, CLIPS, ROUNDS, BITS = 20, 4, 6, 6


def main() -> None:
    """Print a forward's median time in full precision, by floats and in integers."""
    if not bytes_are_fast():
        raise SystemExit("this processor multiplies bytes no faster than floats")
    torch.set_num_threads(1)
    full, floats, integers = (load_model("bundled:ctc") for _ in range(3))
    clips = [clips_of(full, number, CLIPS) for number in range(SPEAKERS)]
    batches = [batch for few in clips for batch in tuning_batches(full, few, None)]
    ranges = {n: make_range(s.low, s.high) for n, s in observe(full, batches, rows=False).items()}
    weights = switch_of(full).full_weights()
    packed = {a: quantize_weight(weights[a.name], BITS, "per_channel") for a in full.layers}
    for model in (floats, integers):
        switch = switch_of(model)
        switch.install(
            {a.name: dequantize_weight(p) for a, p in packed.items()},
            switch.full_leftovers(),
            ranges,
            8,
            {a.name: integers_of(a, p) for a, p in packed.items()} if model is integers else None,
        )
    seconds: list[list[float]] = [[], [], []]
    with torch.inference_mode():
        for _ in range(1 + ROUNDS):
            for batch in batches:
                for model, spent in zip((full, floats, integers), seconds, strict=True):
                    began = time.perf_counter()
                    model.forward(batch)
                    spent.append(time.perf_counter() - began)
    # The first round compiles primitives for each length.
    whole, by_floats, by_integers = (1000 * statistics.median(s[len(batches) :]) for s in seconds)
    print(
        f"a forward of {CLIPS} clips: full precision {whole:.1f} ms, delivered by floats "
        f"{by_floats:.1f} ms, in integers {by_integers:.1f} ms, ratio {by_integers / by_floats:.2f}"
    )


if __name__ == "__main__":
    main()
