"""Does a plan depend on the user, or on the few clips that were sensed?

    python -m benchmarks.plan_stability [--model bundled:ctc] [--speakers 8] [--clips 16]

Each speaker's clips are resampled 20 times (a bootstrap over clips) and planned again. Prints, for
some mean bit depths, the share of layers whose depth a resample of the same speaker changes, and
the share that differs between two speakers: only the excess over the first is personal. Also prints
Spearman's rank correlation of the sensitivities for the same two kinds of pairs.
"""

from __future__ import annotations

import argparse
from itertools import combinations

import numpy as np
import torch

from fedsim.base.agreement import flip_share, rank_correlation
from fedsim.base.units import MB
from fedsim.quant import modelfile
from fedsim.quant.allocation import Sizes, allocate, smallest
from fedsim.quant.model import Batch
from fedsim.quant.modelfile import Manifest
from fedsim.quant.profile import profile_of
from fedsim.quant.stability import resampled_sensitivity
from fedsim.quant.switch import switch_of
from fedsim.scenario.corpus import TOPICS
from fedsim.speech.models import load_model
from fedsim.speech.models.base import SpeechModel, tuning_batches
from fedsim.speech.voices import Take, render
from fedsim.speech.voices.sentences import WORD_SECONDS, WORDS, draw_sentences
from fedsim.speech.voices.speaker import speaker

MEAN_BITS = (3.5, 4.5, 5.5, 6.5)
RESAMPLES = 20


def clips_of(model: SpeechModel, number: int, n: int) -> list[np.ndarray]:
    """Return tuning clips of an English speaker: sentences, or words for a classifier."""
    who, rng = speaker("en", number), np.random.default_rng(number)
    if model.task == "classify":
        return [render(Take(who, str(rng.choice(WORDS)), i, WORD_SECONDS)) for i in range(n)]
    return [render(Take(who, t)) for t in draw_sentences("en", TOPICS, "tuning", n, rng)]


def sizes_of(model: SpeechModel) -> Sizes:
    """Return the bytes of every model file of `model` with one scale per tensor."""
    stored = modelfile.store_leftovers(switch_of(model).full_leftovers())
    manifest = Manifest(
        model.id, modelfile.fingerprint(model.layers), "per_tensor", False, (), {"keep": []}
    )
    return modelfile.model_sizes(model.layers, stored, manifest, range(2, 17))


def budget_at(model: SpeechModel, sizes: Sizes, bits: float) -> int:
    """Return the bytes of a model file whose weights take `bits` bits each, on average."""
    return sizes.fixed_bytes + int(sum(layer.n_weights for layer in model.layers) * bits / 8)


def main() -> None:
    """Print one line per mean bit depth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled:ctc")
    parser.add_argument("--speakers", type=int, default=8)
    parser.add_argument("--clips", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.model, device="cpu")
    sizes = sizes_of(model)
    spoken = [clips_of(model, k, options.clips) for k in range(options.speakers)]
    print(f"{options.model}, {options.speakers} speakers, {options.clips} clips each, ", end="")
    print(
        f"{RESAMPLES} resamples, {len(model.layers)} layers, smallest {smallest(sizes) / MB:.2f} MB"
    )
    found = [_sensed(model, clips, k) for k, clips in enumerate(spoken)]
    pairs = list(combinations([own for own, _ in found], 2))
    ranks = np.mean([rank_correlation(drawn, own) for own, drawn in found])
    across = np.mean([rank_correlation(a[None], b) for a, b in pairs])
    print(f"rank correlation: {ranks:.3f} with a resample, {across:.3f} with another speaker")
    print("bits  model MB  layers changed by a resample  by another speaker")
    for bits in MEAN_BITS:
        budget = budget_at(model, sizes, bits)

        def plan(values: np.ndarray, budget: int = budget) -> np.ndarray:
            return np.array(allocate("myqasr", profile_of(values, "median"), sizes, budget))

        within = [flip_share(np.stack([plan(v) for v in drawn]), plan(own)) for own, drawn in found]
        between = [flip_share(plan(a)[None], plan(b)) for a, b in pairs]
        print(
            f"{bits:4}  {budget / MB:8.2f}  {100 * np.mean(within):26.1f} %"
            f"  {100 * np.mean(between):16.1f} %",
            flush=True,
        )


def _sensed(
    model: SpeechModel, clips: list[np.ndarray], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    def batches_of(places: np.ndarray) -> list[Batch]:
        return list(tuning_batches(model, [clips[i] for i in places], None))

    rng = np.random.default_rng(seed)
    return resampled_sensitivity(model, batches_of, len(clips), rng, resamples=RESAMPLES)


if __name__ == "__main__":
    main()
