"""What compensated rounding, second moments and the table of losses cost, on one core.

    python -m benchmarks.rounding [--model cache:whisper-base]

Prints seconds, and ratios to the bare forward pass over the same clips in the same run: moments are
recorded in the pass that senses, so their cost is that of the pass with them less that of the pass
without. `--model` is the bundled recognizer unless another is named.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fedsim.base.paths import resolve
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.moments import second_moments
from fedsim.quant.onepass import one_pass
from fedsim.quant.rounding.plan import round_plan
from fedsim.quant.sensitivity import sense
from fedsim.quant.switch import switch_of
from fedsim.speech.models import load_model
from fedsim.speech.public import public_request, public_set
from fedsim.speech.public_model import losses_on
from fedsim.speech.tuning import tuning_pass

CLIPS, REPEATS = 8, 5
DEPTHS = (2, 3, 4, 5, 6)
FORMATS = (WeightFormat("per_channel"), WeightFormat("group_128", zero_points=True))


def seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the median of the seconds that some work takes."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled:ctc")
    parser.add_argument("--no-table", action="store_true", help="leave the table of losses out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(resolve(options.model, Path()), device="cpu")
    clips = [one.clip for one in public_set(public_request(n_clips=CLIPS)).clips]
    tuning = tuning_pass(model, clips, "en" if model.needs_tokens else None)
    batches = list(tuning.batches())
    with torch.inference_mode():
        bare = seconds(lambda: [model.forward(batch) for batch in batches])
    sensing = seconds(lambda: one_pass(model, iter(batches), lambda m, b: sense(m, b)))
    both = seconds(lambda: one_pass(model, iter(batches), lambda m, b: sense(m, b), moments=True))
    print(f"{model.id}, {CLIPS} clips, one thread")
    print(f"bare forward pass            {bare:8.3f} s")
    print(f"sensing                      {sensing:8.3f} s  {sensing / bare:.2f} x")
    print(f"sensing and second moments   {both:8.3f} s  +{(both - sensing) / bare:.2f} x")
    moments, full = second_moments(model, batches), switch_of(model).full_weights()
    for weight_format in FORMATS:
        name = weight_format.granularity + (", zero points" if weight_format.zero_points else "")
        for rounding in ("nearest", "scaled", "compensated"):
            taken = seconds(
                lambda weight_format=weight_format, rounding=rounding: round_plan(
                    full, model.layers, (3,) * len(model.layers), rounding, weight_format, moments
                ),
                repeats=3,
            )
            print(f"{rounding} at 3 bits, {name:24} {taken:8.3f} s")
    if not options.no_table:
        taken = seconds(
            lambda: losses_on(model, batches, "nearest", FORMATS[0], DEPTHS, {}), repeats=1
        )
        print(f"table of losses, {len(model.layers)} x {len(DEPTHS)}      {taken:8.1f} s")


if __name__ == "__main__":
    main()
