"""Intervals of attack figures: speakers are resampled, the trained attack is kept.

A resample is a row of weights: how often each speaker was drawn. All cases of a speaker share its
weight, so many releases of one speaker do not count as many speakers. A figure is computed for many
rows of weights at once.

The attack is not retrained for each resample, so resamples only show the variance that comes from
the judged speakers. With a cross-validated classifier the training speakers matter as much: without
a leak, a chance likeness of two speakers counts twice, once with each of them in training, and the
variance is up to twice that of the resamples (in general: Nadeau and Bengio 2003, "Inference for
the Generalization Error"). Intervals of such figures are therefore `CROSS_VALIDATED` times as wide.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedsim.base.statistics import Interval, widened

RESAMPLES = 1_000
CROSS_VALIDATED = 2**0.5
_BATCH = 2**22  # weights at once, 8 bytes each


def speaker_interval(
    figure: Callable[[np.ndarray], np.ndarray],
    speakers: int,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    spread: float = 1.0,
    cases: int = 0,
) -> Interval:
    """Return a figure between 0 and 1 and its 95 % bootstrap interval over speakers.

    Resamples in which the figure is not defined are left out.

    Args:
        figure: f(weights of speakers, float64 (b, speakers)) -> the figure under each row, (b,),
            NaN where it is not defined. Weights of 1 give the figure itself.
        speakers: number of speakers, 2 or more.
        rng: draws the speakers.
        resamples: number of resamples.
        spread: factor on the width of the interval.
        cases: number of intermediate values of `figure` per row of weights; limits the memory.
    """
    value = float(figure(np.ones((1, speakers)))[0])
    batch = max(1, _BATCH // max(speakers, cases))
    shares = np.full(speakers, 1 / speakers)
    drawn = np.concatenate(
        [
            figure(rng.multinomial(speakers, shares, min(batch, resamples - done)).astype(float))
            for done in range(0, resamples, batch)
        ]
    )
    ends = widened(value, drawn[~np.isnan(drawn)], speakers)
    low, high = (value + spread * (end - value) for end in ends)
    return Interval(value, max(low, 0.0), min(high, 1.0))


def concordance(
    positive: np.ndarray,
    negative: np.ndarray,
    positive_weight: np.ndarray,
    negative_weight: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of correctly ordered pairs, and that of all pairs, (b,) each.

    Their ratio is the area under the ROC curve (Hanley and McNeil 1982); a tie counts one half.
    scikit-learn's `roc_auc_score` takes one row of weights at a time and sorts for each.

    Args:
        positive: scores of the positive cases, (p,).
        negative: of the negative ones, (q,).
        positive_weight: (b, p).
        negative_weight: (b, q).
    """
    scores, below = _below(negative, negative_weight)
    lower, upper = (np.searchsorted(scores, positive, side) for side in ("left", "right"))
    beaten = (below[:, lower] + below[:, upper]) / 2
    return (positive_weight * beaten).sum(axis=1), positive_weight.sum(axis=1) * below[:, -1]


def equal_error_rate(
    positive: np.ndarray,
    negative: np.ndarray,
    positive_weight: np.ndarray,
    negative_weight: np.ndarray,
) -> np.ndarray:
    """Return the equal error rate, (b,): the mean of both errors where they are closest.

    Thresholds are the scores of positive cases. NaN for a row without cases of either kind. The
    arguments are those of `concordance`.
    """
    wanted, refused = _below(positive, positive_weight)
    scores, below = _below(negative, negative_weight)
    of, others = refused[:, -1:], below[:, -1:]
    missed = ratio(refused[:, np.searchsorted(wanted, wanted)], of)
    taken = 1 - ratio(below[:, np.searchsorted(scores, wanted)], others)
    nearest = np.abs(missed - taken).argmin(axis=1)[:, None]
    return np.take_along_axis((missed + taken) / 2, nearest, axis=1)[:, 0]


def _below(scores: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted scores (q,), and the weight of the first 0 .. q of them, (b, q + 1)."""
    order = np.argsort(scores, kind="stable")
    below = np.zeros((len(weight), len(scores) + 1))
    np.cumsum(weight[:, order], axis=1, out=below[:, 1:])
    return scores[order], below


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above / below, and NaN where `below` is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def clopper_pearson(hits: float, of: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a share (Clopper and Pearson 1934).

    `hits` may be a fraction, where ties are shared.
    """
    from scipy.stats import beta

    low = float(beta.ppf(0.025, hits, of - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(0.975, hits + 1, of - hits)) if hits < of else 1.0
    return low, high
