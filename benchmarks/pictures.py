"""The pictures of docs/method.md, from bundled:ctc and synthetic speakers.

    python -m benchmarks.pictures [--out docs]

Writes method_layers.svg, method_bits.svg and method_rounding.svg, and prints the numbers in them.
About two minutes on one core; the first time, the public clips' moments and losses come on top.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import svg
from benchmarks.plan_stability import clips_of
from fedsim import load_model, personalize
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.moments import LayerMoments, second_moments
from fedsim.quant.rounding.plan import round_plan
from fedsim.quant.sensitivity import sense
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import dequantize_weight
from fedsim.speech.models.base import SpeechModel, tuning_batches

SPEAKERS, CLIPS = 8, 16
BUDGETS = (0.9, 1.2, 1.6)
DEPTHS = (2, 3, 4, 5, 6)
PAPER = {
    **{"allocation": "myqasr", "rounding": "nearest", "calibration": "cosine"},
    **{"weights": "per_tensor", "zero_points": False},
}
PLANS = {"the paper: by the size of outputs": PAPER, "the default: by losses": {}}
ONE_SCALE, GROUPS = WeightFormat("per_tensor"), WeightFormat("group_128", zero_points=True)
ROUNDINGS = {
    "nearest, a scale per tensor (the paper)": ("nearest", ONE_SCALE),
    "nearest, a scale per 128 weights": ("nearest", GROUPS),
    "compensated, a scale per 128 weights": ("compensated", GROUPS),
}


def main() -> None:
    """Draw all three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model("bundled:ctc", device="cpu")
    spoken = [clips_of(model, k, CLIPS) for k in range(SPEAKERS)]
    parts = parts_of(model.layers)
    values = np.stack([sense(model, tuning_batches(model, clips, None)) for clips in spoken])
    plans = {
        name: [
            [*personalize(model, spoken[0], budget_mb=mb, **how).bits.values()] for mb in BUDGETS
        ]
        for name, how in PLANS.items()
    }
    half = CLIPS // 2
    errors = output_errors(model, spoken[0][:half], spoken[0][half:])
    for name, text in (
        ("layers", svg.dots(values, parts)),
        ("bits", svg.plans(plans, BUDGETS, parts)),
        ("rounding", svg.lines(errors, DEPTHS)),
    ):
        (options.out / f"method_{name}.svg").write_text(text, encoding="utf-8")
    apart = np.exp(np.log(values).std(axis=0))
    between = np.exp(np.log(np.median(values, axis=0)).std())
    print(f"values of layers: factor {between:.2f} from layer to layer (one standard deviation),")
    print(f"  {np.median(apart):.2f} from speaker to speaker (median layer)")
    for name, rows in plans.items():
        for budget, bits in zip(BUDGETS, rows, strict=True):
            print(f"{budget} MB, {name}: {' '.join(map(str, bits))}")
    for name, percent in errors.items():
        print(f"{name}: {'  '.join(f'{value:.3g} %' for value in percent)}")


def parts_of(layers: Sequence[Layer]) -> list[tuple[str, int]]:
    """Return the parts of a wav2vec 2.0, with the number of layers of each, in order."""
    counts: dict[str, int] = {}
    for layer in layers:
        words = layer.name.split(".")
        name = "front"
        if "layers" in words:
            name = f"block {int(words[words.index('layers') + 1]) + 1}"
        elif layer.name == "lm_head":
            name = "head"
        counts[name] = counts.get(name, 0) + 1
    return list(counts.items())


def output_errors(
    model: SpeechModel, tuning: Sequence[np.ndarray], test: Sequence[np.ndarray]
) -> dict[str, list[float]]:
    """Return the squared error of a linear layer's output, in percent of its square: for each
    rounding and depth the median over layers, on `test`; moments come from `tuning`."""
    own = second_moments(model, list(tuning_batches(model, tuning, None)))
    other = second_moments(model, list(tuning_batches(model, test, None)))
    layers = [a for a in model.layers if a.kind == "linear" and a.name in own and a.name in other]
    full = switch_of(model).full_weights()
    return {
        name: [_error(full, layers, depth, *how, own, other) for depth in DEPTHS]
        for name, how in ROUNDINGS.items()
    }


def _error(
    full: Mapping[str, torch.Tensor],
    layers: Sequence[Layer],
    depth: int,
    rounding: str,
    weight_format: WeightFormat,
    own: Mapping[str, LayerMoments],
    other: Mapping[str, LayerMoments],
) -> float:
    packed = round_plan(full, layers, (depth,) * len(layers), rounding, weight_format, own)
    errors = []
    for layer, weight in zip(layers, packed, strict=True):
        exact, moments = full[layer.name].numpy(), other[layer.name].mean[0]
        change = dequantize_weight(weight).numpy() - exact
        errors.append(_power(change, moments) / _power(exact, moments))
    return 100 * float(np.median(errors))


def _power(weight: np.ndarray, moments: np.ndarray) -> float:
    """Return the mean of |W x|^2 over the inputs x, from the mean of x x^T."""
    return float(np.einsum("oi,ij,oj->", weight, moments, weight, optimize=True))


if __name__ == "__main__":
    main()
