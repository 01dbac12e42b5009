"""The data of the figures of the fleet: when models are ready, and where time goes."""

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
"""Spells in which something is done for a client -> what they are called."""
WAITING = {
    "unavailable_s": "device not available",
    "queue_s": "queue of the planner",
    "retry_s": "time-outs and retries",
}
"""Spells in which nothing is."""
_MOST_STEPS = 200  # in a curve; of more clients an even choice is drawn
_SEEN = 1e-3  # of a bar: less than a pixel
_LEAST = 1e-3  # seconds; a logarithm has no zero


def ready_shares(timelines: Sequence[Timeline]) -> Table:
    """Return, for each class of device, the share of its clients whose model is ready by a time.

    Empirical distribution functions over all clients of a class, those that never get a model too.
    Every curve goes on to the last model of the whole fleet.
    """
    last = max((t.ready_s for t in timelines if t.ready_s is not None), default=None)
    if last is None:
        return []
    made: Table = []
    for device, found in _classes(timelines).items():
        ready = sorted(max(t.ready_s, _LEAST) for t in found if t.ready_s is not None)
        if not ready:
            continue
        steps = np.unique(np.linspace(1, len(ready), min(len(ready), _MOST_STEPS)).astype(int))
        points = [(ready[n - 1], n) for n in steps.tolist()]
        points = [(ready[0], 0), *points, (max(last, _LEAST), len(ready))]
        made += [
            {"line": device, "seconds": float(f"{s:.5g}"), "share": round(100 * n / len(found), 3)}
            for s, n in points
        ]
    return made


def mean_spells(timelines: Sequence[Timeline], spells: Mapping[str, str]) -> Table:
    """Return the mean seconds of a client of each class in each of `spells`.

    Those that could not be seen, in any class, beside the longest bar are left out.
    """
    means = {
        device: {
            said: float(np.mean([getattr(t, name) for t in found])) for name, said in spells.items()
        }
        for device, found in _classes(timelines).items()
    }
    longest = max((sum(each.values()) for each in means.values()), default=0.0)
    seen = [s for s in spells.values() if any(m[s] > longest * _SEEN for m in means.values())]
    return [
        {"device": device, "line": said, "seconds": float(f"{each[said]:.5g}"), "order": i}
        for device, each in means.items()
        for i, said in enumerate(seen)
    ]


def _classes(timelines: Sequence[Timeline]) -> dict[str, list[Timeline]]:
    found: dict[str, list[Timeline]] = {}
    for line in sorted(timelines, key=lambda line: line.device):
        found.setdefault(line.device, []).append(line)
    return found
