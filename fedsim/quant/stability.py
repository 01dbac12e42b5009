"""How much of a sensitivity is due to the user, and how much to the few clips that were sensed.

A user's clips are resampled with replacement (a bootstrap over clips), and each resample is sensed
as the clips themselves are. A plan that changes when other clips of the same user are drawn says
little about the user.
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
    """Return the sensitivities of the clips, float64 (L,), and of each resample, (R, L).

    Args:
        model: in full precision.
        batches_of: f(indices of clips, int64 (n,) with repeats) -> their batches.
        clips: how many clips there are.
        rng: draws the resamples.
        resamples: their number R.
        measure: the sensitivity measure.
    """
    drawn = [np.sort(rng.integers(clips, size=clips)) for _ in range(resamples)]
    values = [sense(model, batches_of(places), measure) for places in (np.arange(clips), *drawn)]
    return values[0], np.stack(values[1:])
