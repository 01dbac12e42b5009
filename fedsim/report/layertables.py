"""The data of the figures of layers: bits, sensitivities, activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsim.base.units import MB
from fedsim.report.tables import Table, joined
from fedsim.results.lines import Source, source_of
from fedsim.results.rates import lines_of
from fedsim.results.rows import Row, Sensed
from fedsim.results.runs import Part

MAX_MODELS = 40
"""Models in a figure with one row per model; of more, an even choice is drawn."""
_MAX_CURVES = 6
_SHOWN_LAYERS = 6
_NO_BAND = {"low": None, "high": None}


def bits_table(parts: Sequence[Part]) -> tuple[str, Table]:
    """Return a method, and the bit depth of each layer of each of its models tuned on own clips.

    The method is the first with a model whose layers differ in depth; models are sorted by budget.
    """
    for method in dict.fromkeys(
        x.method for p in parts for x in lines_of(p) if x.source is Source.OWN
    ):
        models = [
            (part, row, part.plan_of[place].bits)
            for part in parts
            for row in part.rows
            if row.method == method and source_of(row) is Source.OWN
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
    """Return the sensitivity of each layer, as each client released it.

    Many releases become one curve, their median, with the minimum and the maximum.
    """
    curves: dict[str, tuple[Part, Sensed]] = {}
    seen: set[tuple[str, tuple[float, ...]]] = set()
    for part in parts:
        for sensed in part.sensed:
            if sensed.sensitivity and (sensed.client, sensed.sensitivity) not in seen:
                seen.add((sensed.client, sensed.sensitivity))
                name = sensed.client
                name = joined(name, part.label) if name in curves else name
                curves[name] = part, sensed
    longest = max((len(sensed.sensitivity) for _, sensed in curves.values()), default=0)
    curves = {  # the layers of one model
        name: curve for name, curve in curves.items() if len(curve[1].sensitivity) == longest
    }
    if len(curves) <= _MAX_CURVES:
        return [
            {"line": name, "layer": i, "name": _layer_name(part, i), "value": v, **_NO_BAND}
            for name, (part, sensed) in curves.items()
            for i, v in enumerate(sensed.sensitivity, start=1)
        ]
    part = next(iter(curves.values()))[0]
    values = np.array([sensed.sensitivity for _, sensed in curves.values()])
    clients = {sensed.client for _, sensed in curves.values()}
    columns = zip(np.median(values, 0), values.min(0), values.max(0), strict=True)
    name = f"median of {len(clients)} clients"
    if len(curves) > len(clients):  # each released several times
        name = f"median of {len(curves)} releases of {len(clients)} clients"
    return [
        {
            "line": name,
            "layer": i,
            "name": _layer_name(part, i),
            "value": float(middle),
            "low": float(low),
            "high": float(high),
        }
        for i, (middle, low, high) in enumerate(columns, start=1)
    ]


def activation_quantiles(parts: Sequence[Part]) -> tuple[list[str], Table]:
    """Return an even choice of layers from input to output, and quantiles of their outputs.

    They come from the first part with few clients that kept quantiles, as a study does; each client
    is a group.
    """
    for part in parts:
        groups = [sensed for sensed in part.sensed if sensed.quantiles]
        if not 1 < len(groups) <= _MAX_CURVES:
            continue
        last = len(part.layers) or len(groups[0].sensitivity)
        if not last:
            continue
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
    if len(models) <= MAX_MODELS:
        return models
    return [models[i] for i in np.linspace(0, len(models) - 1, MAX_MODELS).astype(int)]


def _layer_name(part: Part, layer: int) -> str:
    return part.layers[layer - 1]["name"] if layer <= len(part.layers) else f"layer {layer}"
