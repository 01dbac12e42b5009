"""The data of the figures of layers: bits, sensitivities, activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsim.base.units import MB
from fedsim.report.tables import Table, joined
from fedsim.results.lines import source_of
from fedsim.results.rates import lines_of
from fedsim.results.rows import Row
from fedsim.results.runs import Part
from fedsim.scenario.methods import OWN

MOST_MODELS = 40
"""Models in a figure that has a row for each; of more, an even choice is drawn."""
_MOST_CURVES = 6
_SHOWN_LAYERS = 6
_NO_BAND = {"low": None, "high": None}


def bits_table(parts: Sequence[Part]) -> tuple[str, Table]:
    """Return a method, and the bit depth of each layer of each model it made from own clips.

    The method is the first whose layers have several depths; models go by budget.
    """
    for method in dict.fromkeys(x.method for p in parts for x in lines_of(p) if x.source == OWN):
        models = [
            (part, row, part.plan_of[place].bits)
            for part in parts
            for row in part.rows
            if row.method == method and source_of(row) == OWN
            if (place := (row.client, row.method, row.tuned_on)) in part.plan_of
        ]
        if any(len(set(bits)) > 1 for _, _, bits in models):
            models.sort(key=lambda m: (m[1].budget_bytes, m[1].client))
            return method, [
                {
                    "model": joined(
                        row.client, f"{row.budget_bytes / MB:.4g} MB", part.label_but_budget
                    ),
                    "layer": layer,
                    "name": _layer_name(part, layer),
                    "bits": depth,
                }
                for part, row, bits in _even_choice(models)
                for layer, depth in enumerate(bits, start=1)
            ]
    return "", []


def sensitivity_table(parts: Sequence[Part]) -> Table:
    """Return the sensitivity of each layer as each client sensed it.

    Many clients are one curve, `median`, with the least and the greatest value beside it.
    """
    curves: dict[str, tuple[Part, tuple[float, ...]]] = {}
    seen: set[tuple[str, tuple[float, ...]]] = set()
    for part in parts:
        for sensed in part.sensed:
            if sensed.sensitivity and (sensed.client, sensed.sensitivity) not in seen:
                seen.add((sensed.client, sensed.sensitivity))
                name = sensed.client
                curves[joined(name, part.label) if name in curves else name] = (
                    part,
                    sensed.sensitivity,
                )
    longest = max((len(values) for _, values in curves.values()), default=0)
    curves = {k: v for k, v in curves.items() if len(v[1]) == longest}  # one model's layers
    if len(curves) <= _MOST_CURVES:
        return [
            {"line": name, "layer": i, "name": _layer_name(part, i), "value": v, **_NO_BAND}
            for name, (part, values) in curves.items()
            for i, v in enumerate(values, start=1)
        ]
    part = next(iter(curves.values()))[0]
    every = np.array([values for _, values in curves.values()])
    columns = zip(np.median(every, 0), every.min(0), every.max(0), strict=True)
    return [
        {
            "line": f"median of {len(every)} clients",
            "layer": i,
            "name": _layer_name(part, i),
            "value": float(middle),
            "low": float(low),
            "high": float(high),
        }
        for i, (middle, low, high) in enumerate(columns, start=1)
    ]


def activation_quantiles(parts: Sequence[Part]) -> tuple[list[str], Table]:
    """Return some layers, evenly from input to output, and the quantiles of what they answer.

    Of few clients, each a group; of the first part that kept quantiles, as a study does.
    """
    for part in parts:
        groups = [sensed for sensed in part.sensed if sensed.quantiles]
        if not 1 < len(groups) <= _MOST_CURVES:
            continue
        last = len(groups[0].sensitivity)
        numbers = dict.fromkeys(np.linspace(1, last, min(_SHOWN_LAYERS, last)).astype(int).tolist())
        names = {n: f"{n}: {'.'.join(_layer_name(part, n).split('.')[-2:])}" for n in numbers}
        levels = np.linspace(0, 1, len(groups[0].quantiles) // last)
        return list(names.values()), [
            {"group": sensed.client, "layer": name, "q": round(float(q), 6), "value": value}
            for n, name in names.items()
            for sensed in groups
            for q, value in zip(
                levels,
                sensed.quantiles[(n - 1) * len(levels) : n * len(levels)],
                strict=True,
            )
        ]
    return [], []


def _even_choice(models: list[tuple[Part, Row, tuple[int, ...]]]) -> list[Any]:
    if len(models) <= MOST_MODELS:
        return models
    return [models[i] for i in np.linspace(0, len(models) - 1, MOST_MODELS).astype(int)]


def _layer_name(part: Part, layer: int) -> str:
    return part.layers[layer - 1]["name"] if layer <= len(part.layers) else f"layer {layer}"
