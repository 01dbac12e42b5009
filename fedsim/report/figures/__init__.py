"""Figures: each function takes a table, as of `fedsim.report.tables`, and returns a chart.

Colour-blind readers can distinguish the colours; marks and dashes differ without any colour.
"""

from fedsim.report.figures.curves import error_by_setting, error_by_size
from fedsim.report.figures.fleet import budgets, ready_by_class, waiting_by_class, work_by_class
from fedsim.report.figures.layers import (
    activations_by_group,
    bits_by_layer,
    gain_by_seconds,
    sensitivity_by_layer,
)
from fedsim.report.figures.leaks import leak_by_error
from fedsim.report.figures.people import error_by_client, error_by_method, rare_words, transfer

__all__ = [
    "activations_by_group",
    "bits_by_layer",
    "budgets",
    "error_by_client",
    "error_by_method",
    "error_by_setting",
    "error_by_size",
    "gain_by_seconds",
    "leak_by_error",
    "rare_words",
    "ready_by_class",
    "sensitivity_by_layer",
    "transfer",
    "waiting_by_class",
    "work_by_class",
]
