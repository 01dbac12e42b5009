"""Which quantiles of a layer's output a study asks for."""

from __future__ import annotations

QUANTILES = tuple(i / 32 for i in range(33))
"""From the least value to the greatest, evenly."""
