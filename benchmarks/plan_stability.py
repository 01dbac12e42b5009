"""Is a plan the user's own, or an accident of the few clips that were looked at?

    python -m benchmarks.plan_stability [--model bundled:ctc] [--speakers 8] [--clips 16]

Each speaker's clips are resampled 20 times (bootstrap over clips) and planned anew. Prints, for
some mean bit depths, the share of layers whose depth a resample of the same speaker changes, and
the share that differs between two speakers: only what is beyond the first is personal. And
Spearman's rank correlation of the sensitivities, of the same two kinds of pairs.
"""

from __future__ import annotations

import argparse
from itertools import combinations

import numpy as np
import torch

from fedsim.quant import modelfile
from fedsim.quant.allocation import MB, smallest
from fedsim.quant.model import Batch
from fedsim.quant.modelfile import Manifest
from fedsim.quant.stability import Stability, plan_stability
from fedsim.quant.switch import switch_of
from fedsim.results.statistics import flip_share, rank_correlation
from fedsim.scenario.schema import TOPICS
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


def main() -> None:
    """Print one line a mean bit depth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled:ctc")
    parser.add_argument("--speakers", type=int, default=8)
    parser.add_argument("--clips", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.model)
    stored = modelfile.store_leftovers(switch_of(model).full_leftovers())
    manifest = Manifest(
        model.id, modelfile.fingerprint(model.layers), "per_tensor", 8, (), {"keep": []}
    )
    sizes = modelfile.model_sizes(model.layers, stored, manifest, range(2, 17))
    weights = sum(layer.n_weights for layer in model.layers)
    spoken = [clips_of(model, k, options.clips) for k in range(options.speakers)]
    print(f"{options.model}, {options.speakers} speakers, {options.clips} clips each, ", end="")
    print(
        f"{RESAMPLES} resamples, {len(model.layers)} layers, smallest {smallest(sizes) / MB:.2f} MB"
    )
    print("bits  model MB  layers changed by: resampling  another speaker   rank correlation: both")
    for bits in MEAN_BITS:
        budget = sizes.fixed_bytes + int(weights * bits / 8)
        found = [_stability(model, clips, sizes, budget, k) for k, clips in enumerate(spoken)]
        within = np.mean([flip_share(s.resampled_bits, s.bits) for s in found])
        ranks = np.mean([rank_correlation(s.resampled_sensitivity, s.sensitivity) for s in found])
        pairs = list(combinations(found, 2))
        between = np.mean([flip_share(a.bits[None], b.bits) for a, b in pairs])
        across = np.mean([rank_correlation(a.sensitivity[None], b.sensitivity) for a, b in pairs])
        print(
            f"{bits:4}  {budget / MB:8.2f}  {100 * within:28.1f} %  {100 * between:14.1f} %"
            f"   {ranks:16.3f}  {across:.3f}",
            flush=True,
        )


def _stability(
    model: SpeechModel, clips: list[np.ndarray], sizes: modelfile.Sizes, budget: int, seed: int
) -> Stability:
    def batches_of(places: np.ndarray) -> list[Batch]:
        return list(tuning_batches(model, [clips[i] for i in places], None))

    rng = np.random.default_rng(seed)
    return plan_stability(model, batches_of, len(clips), sizes, budget, rng, resamples=RESAMPLES)


if __name__ == "__main__":
    main()
