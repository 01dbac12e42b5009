"""The data of the figures of the fleet: when models are ready, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedsim.fleet.timeline import Timeline
from fedsim.report.tables import Table

WORK = {
    "download_s": "download",
    "sense_s": "sense",
    "upload_s": "upload",
    "plan_s": "plan",
    "calibrate_s": "calibrate",
    "evaluate_s": "evaluate",
}
"""Columns of timeline.parquet in which work is done for a client -> their names in a figure."""
WAITING = {
    "unavailable_s": "device not available",
    "queue_s": "queue of the planner",
    "retry_s": "timeouts and retries",
}
"""Columns in which the client waits -> their names."""
_MAX_STEPS = 200  # of a curve; of more clients an even choice is drawn
_MIN_SHARE = 1e-3  # of the longest bar: less is narrower than a pixel
_MIN_S = 1e-3  # a logarithmic axis has no zero


def ready_shares(timelines: Sequence[Timeline]) -> Table:
    """Return, for each device class, the share of its clients whose model is ready by a time.

    These are empirical distribution functions over all clients of a class, including those that
    never get a model. Every curve extends to the time of the last model of the whole fleet.
    """
    last = max((t.ready_s for t in timelines if t.ready_s is not None), default=None)
    if last is None:
        return []
    table: Table = []
    for device, lines in _classes(timelines).items():
        ready = sorted(max(t.ready_s, _MIN_S) for t in lines if t.ready_s is not None)
        if not ready:
            continue
        steps = np.unique(np.linspace(1, len(ready), min(len(ready), _MAX_STEPS)).astype(int))
        points = [(ready[n - 1], n) for n in steps.tolist()]
        points = [(ready[0], 0), *points, (max(last, _MIN_S), len(ready))]
        table += [
            {"line": device, "seconds": float(f"{s:.5g}"), "share": round(100 * n / len(lines), 3)}
            for s, n in points
        ]
    return table


def mean_spells(timelines: Sequence[Timeline], spells: Mapping[str, str]) -> Table:
    """Return the mean seconds per client that each device class spends in each of `spells`.

    Spells that are too short to be visible beside the longest bar, in every class, are left out.

    Args:
        timelines: of all clients.
        spells: `WORK` or `WAITING`.
    """
    means = {
        device: {
            name: float(np.mean([getattr(t, column) for t in lines]))
            for column, name in spells.items()
        }
        for device, lines in _classes(timelines).items()
    }
    longest = max((sum(spell_s.values()) for spell_s in means.values()), default=0.0)
    visible = [
        name
        for name in spells.values()
        if any(spell_s[name] > longest * _MIN_SHARE for spell_s in means.values())
    ]
    return [
        {"device": device, "line": name, "seconds": float(f"{spell_s[name]:.5g}"), "order": i}
        for device, spell_s in means.items()
        for i, name in enumerate(visible)
    ]


def _classes(timelines: Sequence[Timeline]) -> dict[str, list[Timeline]]:
    classes: dict[str, list[Timeline]] = {}
    for line in sorted(timelines, key=lambda line: line.device):
        classes.setdefault(line.device, []).append(line)
    return classes
