"""Runs of more clients, and with more workers."""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path

from benchmarks.scale.bare import bare_loop
from benchmarks.scale.runs import run, voices


def growth() -> None:
    """Double the clients from 250 to 4,000; fit the exponent of time; compare peak memory.

    The time of 8 clients is subtracted first, because `start` measures that. It varies by a tenth,
    which would be much of the time of 250 clients: hence the median of five. The bare loop beside
    each run shows how fast the machine was at the time.
    """
    sizes = (250, 500, 1000, 2000, 4000)
    runs: dict[int, float] = {}
    loops: dict[int, float] = {}
    peaks: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        few = voices(Path(scratch), 8)
        starts = [(bare_loop(few), run(few, Path(scratch) / f"start{n}")[0]) for n in range(5)]
        loops[8], runs[8] = (statistics.median(found) for found in zip(*starts, strict=True))
        print(
            f"8 clients: {runs[8]:.1f} s, bare loop {loops[8]:.1f} s, medians of five", flush=True
        )
        for clients in sizes:
            study = voices(Path(scratch), clients)
            loops[clients] = bare_loop(study)
            runs[clients], _, peaks[clients] = run(study, Path(scratch) / f"run{clients}")
            print(
                f"{clients:,} clients: {runs[clients]:.1f} s, bare loop {loops[clients]:.1f} s, "
                f"driver {peaks[clients]['driver']:.0f} MB, largest worker "
                f"{peaks[clients]['worker']:.0f} MB",
                flush=True,
            )
    first, last = peaks[sizes[0]], peaks[sizes[-1]]
    print(
        f"exponent of time in clients: {_exponent(runs, sizes):.3f}, bare loop "
        f"{_exponent(loops, sizes):.3f}; with the start {_exponent(runs, sizes, few=0):.3f}, "
        f"{_exponent(loops, sizes, few=0):.3f}; memory at {sizes[-1]:,} over that at {sizes[0]}: "
        f"driver {last['driver'] / first['driver']:.3f}, worker "
        f"{last['worker'] / first['worker']:.3f}"
    )


def _exponent(seconds: dict[int, float], sizes: tuple[int, ...], few: int = 8) -> float:
    """Return the slope of log seconds in log clients, without the first `few` clients."""
    base = seconds.get(few, 0.0)
    x = [math.log(n - few) for n in sizes]
    y = [math.log(seconds[n] - base) for n in sizes]
    return statistics.linear_regression(x, y).slope


def workers(clients: str = "400") -> None:
    """Compare one worker with two, and the bare loop in one process with two.

    The time of 8 clients is subtracted, because `start` measures that. The bare loop shows how much
    faster the machine is with its second core.
    """
    seconds: dict[tuple[int, int], list[float]] = {}
    loops: dict[int, list[float]] = {1: [], 2: []}
    many = int(clients)
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(2):
            for count in (1, 2):
                for n in (8, many):
                    study = voices(Path(scratch), n, count)
                    out = Path(scratch) / f"run{number}-{count}-{n}"
                    seconds.setdefault((count, n), []).append(run(study, out)[1])
                few, all_ = (bare_loop(voices(Path(scratch), n), count) for n in (8, many))
                loops[count].append(all_ - few)
    one, two = (min(seconds[n, many]) - min(seconds[n, 8]) for n in (1, 2))
    ceiling = min(loops[1]) / min(loops[2])
    print(
        f"{many - 8:,} clients: one worker {one:.1f} s, two {two:.1f} s, ratio {one / two:.2f}; "
        f"bare loop in two processes {ceiling:.2f} times as fast as in one: of that "
        f"{one / two / ceiling:.2f}"
    )
