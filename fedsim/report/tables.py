"""The data of the figures: plain tables with one row per mark, computed from parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedsim.base.units import MB
from fedsim.quant.allocation import ALLOCATORS
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.results.fairness import client_rates as rates_by_client
from fedsim.results.fairness import fairness_of
from fedsim.results.labels import BUDGET, RUN, settings_label
from fedsim.results.lines import Source, source_of
from fedsim.results.rates import PartLine, lines_of, measure
from fedsim.results.rows import Row
from fedsim.results.runs import Part
from fedsim.scenario.methods import FULL_PRECISION, NOBODY

Table = list[dict[str, Any]]
"""Rows of one figure: column -> text, number or None."""

NO_CALIBRATION = "no calibration"
_MIN_COVERED = 0.6  # the share of a matrix of models and clients that must be known
_MAX_BUDGETS = 12  # more in one part are drawn as _GROUPS groups of clients with similar models
_GROUPS = 8
_MAX_RATES = 100  # more distinct rates are drawn in steps of a hundredth of their range


def size_points(parts: Sequence[Part]) -> Table:
    """Return one row per budget of each line: mean model MB, mean bits, rate and interval.

    In a sweep the points of a line are the same clients at several budgets. In a mixed fleet they
    are different clients; if there are many budgets, similar ones are grouped.
    """
    table: Table = []
    for part, label in _labels_without(parts, BUDGET):
        group = _budget_groups(part)
        for line in lines_of(part):
            for budget, rows in _grouped(line.rows, group).items():
                rate = measure(part, rows)
                if rate.value is None:
                    continue
                table.append(
                    {
                        "line": joined(label, line.name),
                        "full": line.is_full_precision,
                        "budget": budget,
                        "mb": round(float(np.mean([r.file_bytes for r in rows])) / MB, 4),
                        "bits": round(float(np.mean([r.mean_bits for r in rows])), 4),
                        "clients": len({row.client for row in rows}),
                        **_rate(rate),
                    }
                )
    return table


def setting_points(parts: Sequence[Part], key: str) -> Table:
    """Return one row per line and value of a numeric setting."""
    return [
        {
            "line": joined(label, line.name),
            "full": line.is_full_precision,
            "x": part.settings[key],
            **_rate(line.rate),
        }
        for part, label in _labels_without(parts, key)
        for line in lines_of(part)
        if line.rate.value is not None
    ]


def method_rows(parts: Sequence[Part], named: Collection[PartLine] = ()) -> Table:
    """Return one row per line, its rate and interval; full precision only once if it is equal.

    `named` is true for the lines in `named`; for all if these are none of them.
    """
    lines = [x for part in parts for x in lines_of(part) if x.rate.value is not None]
    chosen = [line for line in lines if line in named] or lines
    full = [line for line in lines if line.is_full_precision]
    table: Table = []
    if full and all(line.rate == full[0].rate for line in full):
        is_named = any(line in chosen for line in full)
        table.append({"line": full[0].name, "named": is_named, **_rate(full[0].rate)})
        lines = [line for line in lines if not line.is_full_precision]
    return [
        *table,
        *(
            {"line": joined(x.part.label, x.name), "named": x in chosen, **_rate(x.rate)}
            for x in lines
        ),
    ]


def transfer_matrix(part: Part, method: str) -> Table:
    """Return one row per client that tested a model and client on whose clips it was tuned.

    `change` is the rate minus that of the client's own model. The column `no calibration` has the
    model that was tuned on nobody's clips, or else the method's own plan without calibration. The
    table is empty unless most pairs were tested.
    """
    rows = [
        row for row in part.rows if row.method == method and source_of(row) is not Source.NOBODY
    ]
    people = sorted({r.client for r in rows} | {r.tuned_on for r in rows})
    if len(people) < 2 or len(rows) < _MIN_COVERED * len(people) ** 2:
        return []
    own = {row.client: measure(part, [row]).value for row in rows if source_of(row) is Source.OWN}
    return [
        _matrix_cell(part, row, column, own.get(row.client))
        for row, column in [
            *((row, row.tuned_on) for row in rows),
            *((row, NO_CALIBRATION) for row in _uncalibrated(part, method)),
        ]
    ]


def client_rates(parts: Sequence[Part]) -> Table:
    """Return the number of clients per rate, for each line, and over its clients the quartiles, the
    mean, and the mean of the worst tenth."""
    table: Table = []
    for part in parts:
        for line in lines_of(part):
            rates, fairness = [*rates_by_client(line).values()], fairness_of(line)
            if fairness is None:
                continue
            over = fairness.over_clients
            low, high = np.quantile(rates, [0.25, 0.75])
            numbers = {"q25": low, "median": over.median, "q75": high}
            numbers |= {"mean": over.mean, "worst tenth": over.worst_tenth}
            table += [
                {
                    "line": joined(part.label, line.name),
                    "rate": rate,
                    "clients": clients,
                    **{name: round(float(number), 4) for name, number in numbers.items()},
                }
                for rate, clients in sorted(_count_rates([round(r, 2) for r in rates]).items())
            ]
    return table


def rare_rows(parts: Sequence[Part]) -> Table:
    """Return one row per line, with its rate on rare words and interval."""
    return [
        {
            "line": joined(part.label, line.name),
            "named": True,
            **_rate(line.rare),
        }
        for part in parts
        for line in lines_of(part)
        if line.rare is not None
    ]


def _count_rates(rates: Sequence[float]) -> Counter[float]:
    """Return how often each rate occurs; many distinct rates are rounded to `_MAX_RATES` steps."""
    counts = Counter(rates)
    if len(counts) > _MAX_RATES:
        low = min(rates)
        step = (max(rates) - low) / _MAX_RATES
        counts = Counter(round(low + round((x - low) / step) * step, 2) for x in rates)
    return counts


def calibration_costs(parts: Sequence[Part], seconds: Mapping[str, float]) -> Table:
    """Return the cost of each calibration and its gain over calibration without user data.

    Args:
        parts: the results.
        seconds: calibration -> seconds per client.
    """
    table: Table = []
    for part in parts:
        lines = [line for line in lines_of(part) if line.source is not Source.OTHER]
        base = {x.allocation: x.rate.value for x in lines if not _reads_user_data(x.calibration)}
        for line in lines:
            before, after = base.get(line.allocation), line.rate.value
            if line.calibration in seconds and before is not None and after is not None:
                gain = after - before if line.rate.kind == "accuracy" else before - after
                table.append(
                    {
                        "line": joined(part.label, line.allocation),
                        "calibration": line.calibration,
                        "seconds": seconds[line.calibration],
                        "gain": round(gain, 4),
                    }
                )
    return table


def _rate(rate: Any) -> dict[str, float | None]:
    values = {"rate": rate.value, "low": rate.low, "high": rate.high}
    return {k: None if v is None else round(v, 4) for k, v in values.items()}


def _labels_without(parts: Sequence[Part], key: str) -> Iterable[tuple[Part, str]]:
    """Yield each part with its settings in words, without `key`, and without the run if the other
    settings tell parts apart."""
    others = [{k: v for k, v in part.settings.items() if k not in (key, RUN)} for part in parts]
    points = {(str(p.settings.get(key)), str(o)) for p, o in zip(parts, others, strict=True)}
    if len(points) < len(parts):  # two runs with the same settings
        others = [{k: v for k, v in part.settings.items() if k != key} for part in parts]
    for part, settings in zip(parts, others, strict=True):
        yield part, settings_label(settings)


def _budget_groups(part: Part) -> dict[int, float]:
    """Return budget in bytes -> in MB; many budgets become means of groups of similar models."""
    sizes: dict[int, int] = {}
    for row in part.rows:
        small = 0 if row.allocation == FULL_PRECISION else row.file_bytes
        sizes[row.budget_bytes] = max(small, sizes.get(row.budget_bytes, 0))
    groups = {budget: budget for budget in sizes}
    if len(sizes) > _MAX_BUDGETS:
        # Budgets above the largest model change nothing, so equal sizes are one group.
        edges = np.quantile([*sizes.values()], np.linspace(0, 1, _GROUPS + 1)[1:-1])
        groups = {b: int(np.searchsorted(edges, size, "right")) for b, size in sizes.items()}
    members: dict[int, list[int]] = {}
    for budget, group in groups.items():
        members.setdefault(group, []).append(budget)
    return {b: round(float(np.mean(members[group])) / MB, 4) for b, group in groups.items()}


def _grouped(rows: Sequence[Row], group: Mapping[int, float]) -> dict[float, list[Row]]:
    groups: dict[float, list[Row]] = {}
    for row in rows:
        groups.setdefault(group[row.budget_bytes], []).append(row)
    return dict(sorted(groups.items()))


def joined(*words: str) -> str:
    """Return the words that are not empty, with dots between them."""
    return " · ".join(word for word in words if word)


def _matrix_cell(part: Part, row: Row, column: str, own: float | None) -> dict[str, Any]:
    rate = measure(part, [row])
    change = None if rate.value is None or own is None else round(rate.value - own, 4)
    return {"test": row.client, "tuned": column, **_rate(rate), "change": change}


def _uncalibrated(part: Part, method: str) -> list[Row]:
    nobody = [r for r in part.rows if source_of(r) is Source.NOBODY and r.method != FULL_PRECISION]
    if nobody:
        chosen = min(nobody, key=lambda r: (ALLOCATORS[r.allocation].role != "baseline", r.method))
        return [row for row in nobody if row.method == chosen.method]
    allocation = method.rsplit("/", 1)[0]
    return [
        row
        for row in part.rows
        if row.method.rsplit("/", 1)[0] == allocation
        and row.method != method
        and not _reads_user_data(row.calibration)
        and source_of(row) is Source.OWN
    ]


def _reads_user_data(calibration: str) -> bool:
    return calibration == NOBODY or CALIBRATORS[calibration].user_data
