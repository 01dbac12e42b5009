"""How runs scale: against a bare loop, with clients, with workers; and what a message costs.

    python -m benchmarks.scale overhead [CLIENTS [REPEATS]]    1,000 clients against bare forwards
    python -m benchmarks.scale growth                   250 to 4,000 clients: exponent, memory
    python -m benchmarks.scale workers [CLIENTS]        one worker against two
    python -m benchmarks.scale messages                 CPU time of the driver per message on Ray
    python -m benchmarks.scale estimate [SCENARIO ...]  `fedsim estimate`, and the run itself
    python -m benchmarks.scale start [REPEATS]          `fedsim --help`, and 8 clients, cold

Every run is a process of its own. Clips are synthetic speech; where making them would hide what is
measured, they are written first, to a folder in memory if the system has one, because the speed of
a disk varies. Use an otherwise idle machine.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.scale.bare import bare, bare_loop
from benchmarks.scale.growth import growth, workers
from benchmarks.scale.messages import messages
from benchmarks.scale.runs import CLIPS, LINEARS, MEMORY, SCENARIO, WORKERS, one, run, voices


def main() -> None:
    """Run the measurement named on the command line."""
    what, *more = sys.argv[1:] or ["overhead"]
    measures = {
        "overhead": overhead,
        "growth": growth,
        "workers": workers,
        "messages": messages,
        "estimate": estimates,
        "start": start,
        "bare": bare,
        "one": one,
    }
    measures[what](*more)


def overhead(clients: str = "1000", repeats: str = "2") -> None:
    """Compare a study on Ray with the forward passes alone, in as many processes."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as scratch:
        folder = Path(scratch)
        options = ["--speakers", clients, "--clips", str(2 * CLIPS)]
        command = [sys.executable, "-m", "fedsim", "voices", *options]
        subprocess.run([*command, "--export", str(folder / "clips")], check=True)
        corpus = (
            f"{{path: {folder / 'clips'}, group_by: speaker, tuning_clips: {CLIPS}, "
            f"test_clips: {CLIPS}}}"
        )
        study = folder / "study.yaml"
        study.write_text(SCENARIO.format(corpus=corpus, workers=WORKERS))
        ratios: dict[str, list[float]] = {linears: [] for linears in LINEARS}
        for number in range(int(repeats)):
            loops = {linears: bare_loop(study, linears=linears) for linears in LINEARS}
            ours, timed, _ = run(study, folder / f"run{number}")
            for linears, loop in loops.items():
                ratios[linears].append(ours / loop)
            print(
                f"{int(clients):,} clients: fedsim {ours:.1f} s (of which {timed:.1f} s after its "
                f"start); "
                + "; ".join(
                    f"bare loop with linear layers by {linears} {loop:.1f} s, ratio "
                    f"{ratios[linears][-1]:.3f}"
                    for linears, loop in loops.items()
                ),
                flush=True,
            )
        for linears, found in ratios.items():
            print(
                f"ratio, linear layers of the bare loop by {linears}: {statistics.mean(found):.3f}"
            )


def start(repeats: str = "5") -> None:
    """Time `fedsim --help` and a run of 8 clients in a new process; print medians of `repeats`."""
    helped, cold = [], []
    with tempfile.TemporaryDirectory() as scratch:
        study = voices(Path(scratch), 8)
        for number in range(int(repeats)):
            helped.append(_seconds("--help"))
            out = Path(scratch) / f"run{number}"
            cold.append(_seconds("run", str(study), "--engine", "auto", "--out", str(out)))
            engine = json.loads((out / "timing.json").read_text())["engine"]
    print(
        f"fedsim --help {statistics.median(helped):.2f} s; 8 clients from cold, engine {engine}, "
        f"{statistics.median(cold):.1f} s ({', '.join(f'{s:.1f}' for s in cold)})"
    )


def _seconds(*arguments: str) -> float:
    """Return the seconds that `fedsim` takes with these arguments, including process start."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "fedsim", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def estimates(*names: str) -> None:
    """Compare the estimate of each scenario with its run."""
    from fedsim.runner.estimate import estimate
    from fedsim.scenario import find_scenario, load_scenario

    for name in names or ("quickstart", "fleet_1000"):
        scenario = load_scenario(find_scenario(name))
        found = estimate(scenario)
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "study.yaml"
            file.write_text(scenario.to_yaml(), encoding="utf-8")
            wall, _, peaks = run(file, Path(scratch) / "run")
            disk = sum(f.stat().st_size for f in (Path(scratch) / "run").rglob("*") if f.is_file())
        worker = (found.worker_bytes or 0) / 2**20
        print(
            f"{name}: estimated {found.seconds:.0f} s, took {wall:.0f}, ratio "
            f"{found.seconds / wall:.2f}; worker {worker:.0f} MB, {peaks['worker']:.0f}; disk "
            f"{found.disk_bytes / 2**20:.1f} MB, {disk / 2**20:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
