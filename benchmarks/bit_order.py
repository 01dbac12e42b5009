"""Which layers should lose bits first? Whisper base on the real English prompts, weights only.

    python -m benchmarks.bit_order            (needs python -m benchmarks.real_speech once)

Prints the corpus WER of each order of Algorithm 1 at 5.5 bits with one scale per tensor, and of 4
bits with one scale per channel, with 95 % bootstrap intervals over the test clips; then the ratio
of the two orders, and the loss at 4 bits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.fixtures import prompts, whisper_base
from fedsim.quant import modelfile
from fedsim.quant.allocation import Sizes, allocate, mean_bits
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.packing import MAX_BITS, MIN_BITS, packed_bytes
from fedsim.quant.profile import profile_of
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.sensitivity import sense
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import dequantize_weight
from fedsim.speech.models.base import SpeechModel, own_tokens, transcribe_clips, tuning_batches
from fedsim.speech.scoring import count_errors, interval, total

LANGUAGE = "en"


def weights_only(model: SpeechModel, bits: float) -> tuple[Sizes, int]:
    """Return sizes that count weights only, and the bytes of all weights at `bits` bits each."""
    depths = tuple(range(MIN_BITS, MAX_BITS + 1))
    table = [[packed_bytes(layer.n_weights, d) for d in depths] for layer in model.layers]
    total = sum(layer.n_weights for layer in model.layers)
    return Sizes(depths, np.array(table, np.int64), 0), int(total * bits / 8)


def test(
    model: SpeechModel, plan: Sequence[int], weight_format: WeightFormat, clips: list[np.ndarray]
) -> list[str]:
    """Return the transcripts of `clips` with these bit depths, activations in full precision."""
    switch = switch_of(model)
    full = switch.full_weights()
    weights = {
        layer.name: dequantize_weight(quantize_weight(full[layer.name], b, weight_format))
        for layer, b in zip(model.layers, plan, strict=True)
    }
    leftovers = modelfile.load_leftovers(modelfile.store_leftovers(switch.full_leftovers()))
    switch.install(weights, leftovers, {})
    try:
        return transcribe_clips(model, clips, LANGUAGE)
    finally:
        switch.restore()


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=64, help="test clips (default 64)")
    args = parser.parse_args()
    torch.set_num_threads(2)
    model = whisper_base()
    tuning, test_clips, references = prompts(LANGUAGE, 16, args.clips)
    with torch.no_grad():
        tokens = own_tokens(model, tuning, LANGUAGE)
    batches = list(tuning_batches(model, tuning, tokens, LANGUAGE))
    medians = profile_of(sense(model, batches), "median")
    sizes, budget = weights_only(model, 5.5)
    n_weights = [layer.n_weights for layer in model.layers]

    def plan(name: str, order: str = "descending", seed: int = 0) -> tuple[int, ...]:
        rng = np.random.default_rng(seed)
        return allocate(name, medians, sizes, budget, order=order, rng=rng)

    runs = {
        "full precision": None,
        "5.5 bits per tensor, descending": (plan("myqasr"), WeightFormat("per_tensor")),
        "5.5 bits per tensor, ascending": (plan("myqasr", "ascending"), WeightFormat("per_tensor")),
        "5.5 bits per tensor, shuffle 1": (plan("shuffled", seed=1), WeightFormat("per_tensor")),
        "5.5 bits per tensor, shuffle 2": (plan("shuffled", seed=2), WeightFormat("per_tensor")),
        "4 bits per channel, uniform": ((4,) * len(model.layers), WeightFormat("per_channel")),
    }
    rates = {}
    for name, run in runs.items():
        if run is None:
            hypotheses = transcribe_clips(model, test_clips, LANGUAGE)
        else:
            hypotheses = test(model, *run, test_clips)
        counts = [count_errors([r], [h]) for r, h in zip(references, hypotheses, strict=True)]
        pooled = total(counts)
        rates[name] = 100 * pooled.errors / pooled.words
        low, high = (100 * end for end in interval(counts, np.random.default_rng(0)))
        depth = "" if run is None else f"   mean bits {mean_bits(run[0], n_weights):.2f}"
        print(f"{name:34} WER {rates[name]:6.1f} % [{low:5.1f}, {high:6.1f}]{depth}", flush=True)
    up = rates["5.5 bits per tensor, ascending"] / rates["5.5 bits per tensor, descending"]
    more = rates["4 bits per channel, uniform"] - rates["full precision"]
    print(f"ratio ascending / descending: {up:.2f}")
    print(f"4 bits per channel minus full precision: {more:.1f} points")


if __name__ == "__main__":
    main()
