"""How well plans and sensitivities agree: shares of changed bit depths, and rank correlations."""

from __future__ import annotations

import math

import numpy as np


def flip_share(plans: np.ndarray, base: np.ndarray) -> float:
    """Return the share of layers whose bit depth differs from the base plan's, over all plans.

    Args:
        plans: bit depths (R, L) of R plans.
        base: bit depths (L,).

    Raises:
        ValueError: for other shapes.
    """
    _check_rows(plans, base)
    return float(np.mean(plans != base))


def rank_correlation(sensitivities: np.ndarray, base: np.ndarray) -> float:
    """Return the mean of Spearman's correlation of each row of sensitivities with the base's.

    1 means that every row orders the layers as the base does. NaN if the base or any row has equal
    values for all layers, which gives no order.

    Args:
        sensitivities: (R, L), in any unit.
        base: (L,).

    Raises:
        ValueError: for other shapes.
    """
    from scipy.stats import spearmanr  # takes long to import

    _check_rows(sensitivities, base)
    if any(np.ptp(row) == 0 for row in (base, *sensitivities)):
        return math.nan
    return float(np.mean([spearmanr(row, base).statistic for row in sensitivities]))


def _check_rows(rows: np.ndarray, base: np.ndarray) -> None:
    if rows.ndim != 2 or base.ndim != 1 or rows.shape[1] != len(base) or rows.size == 0:
        raise ValueError(f"shapes {rows.shape} and {base.shape} are not (R, L) and (L,)")
