"""How much of a sensitivity is the user's, and how much the few clips that were looked at.

A user's clips are resampled with replacement (bootstrap over clips), and each resample is sensed as
the clips themselves were. A plan that flips when other clips of the same user are drawn says little
about the user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from fedsim.quant.model import Batch, Quantizable
from fedsim.quant.sensitivity import sense


def resampled_sensitivity(
    model: Quantizable,
    batches_of: Callable[[np.ndarray], Iterable[Batch]],
    clips: int,
    rng: np.random.Generator,
    *,
    resamples: int = 20,
    measure: str = "median",
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sensitivity of the clips, float64 (L,), and that of each resample, (R, L).

    Args:
        model: what is sensed, in full precision.
        batches_of: places of clips, int64 (n,) with repeats -> their batches.
        clips: how many clips there are.
        rng: draws the resamples.
        resamples: R.
        measure: the sensitivity measure.
    """
    drawn = [np.sort(rng.integers(clips, size=clips)) for _ in range(resamples)]
    values = [sense(model, batches_of(places), measure) for places in (np.arange(clips), *drawn)]
    return values[0], np.stack(values[1:])
