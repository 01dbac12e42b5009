"""How much of a plan is the user's, and how much the few clips that were looked at.

A user's clips are resampled with replacement (bootstrap over clips); each resample is sensed and
planned as the clips themselves were. A plan that flips when other clips of the same user are drawn
says little about the user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from fedsim.quant.allocation import Sizes, allocate
from fedsim.quant.model import Batch, Quantizable
from fedsim.quant.sensitivity import sense


@dataclass(frozen=True)
class Stability:
    """One client's plan and those of its resampled clips.

    `sensitivity` float64 (L,), `bits` int64 (L,); `resampled_sensitivity` float64 (R, L) and
    `resampled_bits` int64 (R, L).
    """

    sensitivity: np.ndarray
    bits: np.ndarray
    resampled_sensitivity: np.ndarray
    resampled_bits: np.ndarray


def plan_stability(
    model: Quantizable,
    batches_of: Callable[[np.ndarray], Iterable[Batch]],
    clips: int,
    sizes: Sizes,
    budget_bytes: int,
    rng: np.random.Generator,
    *,
    resamples: int = 20,
    measure: str = "median",
) -> Stability:
    """Sense and plan the client's clips, and as many resamples of them.

    Args:
        model: what is sensed, in full precision.
        batches_of: places of clips, int64 (n,) with repeats -> their batches.
        clips: how many clips there are.
        sizes: exact bytes of each layer at each bit depth.
        budget_bytes: the budget that is planned for.
        rng: draws the resamples.
        resamples: R.
        measure: the sensitivity measure.
    """

    def look(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = sense(model, batches_of(places), measure)
        return values, np.array(allocate("myqasr", values, sizes, budget_bytes))

    values, bits = look(np.arange(clips))
    drawn = [look(np.sort(rng.integers(clips, size=clips))) for _ in range(resamples)]
    return Stability(values, bits, np.stack([v for v, _ in drawn]), np.stack([b for _, b in drawn]))
