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
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

THREADS = {"OMP_NUM_THREADS": "1"}
MEMORY = Path("/dev/shm")
WORKERS = 2
CLIPS = 4
LINEARS = ("torch", "fedsim")
"""Whose linear layers the bare loop uses: torch's, or those of `quant/linear.py` and
`quant/integers.py`."""
SCENARIO = """\
name: scale
model: {{id: "bundled:ctc"}}
corpus: {corpus}
clients: {{budget_mb: [1.4, 1.6, 1.8, 2.0, 2.2]}}
methods: [{{allocation: myqasr, calibration: minmax}}]
engine: {{kind: ray, workers: {workers}}}
"""
VOICES = (
    "{{kind: voices, group_by: speaker, population: {{speakers: {clients}}}, tuning_clips: 1,"
    " test_clips: 1}}"
)


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
            loops = {linears: _bare_loop(study, linears=linears) for linears in LINEARS}
            ours, timed, _ = _run(study, folder / f"run{number}")
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


def _bare_loop(study: Path, processes: int = WORKERS, linears: str = "fedsim") -> float:
    """Return the seconds that `bare` takes in this many processes."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.scale", "bare", str(study)]
    parts = [
        subprocess.Popen([*command, f"{part}/{processes}", linears], env={**os.environ, **THREADS})
        for part in range(processes)
    ]
    assert [part.wait() for part in parts] == [0] * processes
    return time.perf_counter() - began


def bare(study: str, part: str, linears: str = "fedsim") -> None:
    """Read the clips and run the forward passes of a part of the clients, such as 0/2.

    For each client, one pass in full precision over its tuning clips, and one over its test clips
    with a model of 4 bits and 8-bit activations, which stays installed. Linear layers are computed
    as fedsim does (those of the delivered model in integers, where that is faster), or as torch
    does, from dequantized floats.
    """
    import torch
    from torch import nn

    from fedsim.quant.activations import InputFormat, Range
    from fedsim.quant.granularities import PER_CHANNEL
    from fedsim.quant.integers import integers_of
    from fedsim.quant.rounding.independent import quantize_weight
    from fedsim.quant.switch import switch_of
    from fedsim.quant.weights import dequantize_weight
    from fedsim.scenario import load_scenario
    from fedsim.speech.clips import read_utterance
    from fedsim.speech.corpus import open_clients
    from fedsim.speech.models.base import transcribe_clips, tuning_batches
    from fedsim.study.model import load_study_model

    torch.set_num_threads(1)
    scenario = load_scenario(study)
    clients = open_clients(scenario.corpus, scenario.clients, scenario.seed)
    model, delivered = (load_study_model(scenario).model for _ in range(2))
    if linears == "torch":
        for module in [*model.module.modules(), *delivered.module.modules()]:
            if isinstance(module, nn.Linear):
                module.__class__ = nn.Linear
    switch = switch_of(delivered)
    full = switch.full_weights()
    packed = {
        layer: quantize_weight(full[layer.name], 4, PER_CHANNEL) for layer in delivered.layers
    }
    weights = {layer.name: dequantize_weight(p) for layer, p in packed.items()}
    integers = {layer.name: integers_of(layer, p) for layer, p in packed.items()}
    inputs = {name: InputFormat(8, Range(-8.0, 8.0)) for name in weights}
    switch.install(
        weights, switch.full_leftovers(), inputs, integers if linears == "fedsim" else None
    )
    first, step = map(int, part.split("/"))
    for key in list(clients)[first::step]:
        client = clients[key]
        tuning, test = ([read_utterance(u) for u in us] for us in (client.tuning, client.test))
        with torch.inference_mode():
            for batch in tuning_batches(model, tuning, None):
                model.forward(batch)
            transcribe_clips(delivered, test)


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
        few = _voices(Path(scratch), 8)
        starts = [(_bare_loop(few), _run(few, Path(scratch) / f"start{n}")[0]) for n in range(5)]
        loops[8], runs[8] = (statistics.median(found) for found in zip(*starts, strict=True))
        print(
            f"8 clients: {runs[8]:.1f} s, bare loop {loops[8]:.1f} s, medians of five", flush=True
        )
        for clients in sizes:
            study = _voices(Path(scratch), clients)
            loops[clients] = _bare_loop(study)
            runs[clients], _, peaks[clients] = _run(study, Path(scratch) / f"run{clients}")
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
                    study = _voices(Path(scratch), n, count)
                    out = Path(scratch) / f"run{number}-{count}-{n}"
                    seconds.setdefault((count, n), []).append(_run(study, out)[1])
                few, all_ = (_bare_loop(_voices(Path(scratch), n), count) for n in (8, many))
                loops[count].append(all_ - few)
    one, two = (min(seconds[n, many]) - min(seconds[n, 8]) for n in (1, 2))
    ceiling = min(loops[1]) / min(loops[2])
    print(
        f"{many - 8:,} clients: one worker {one:.1f} s, two {two:.1f} s, ratio {one / two:.2f}; "
        f"bare loop in two processes {ceiling:.2f} times as fast as in one: of that "
        f"{one / two / ceiling:.2f}"
    )


def messages(count: str = "20000") -> None:
    """Echo messages through the Ray engine; print the driver's CPU time per message."""
    import logging

    from flwr.app import ConfigRecord, Message, RecordDict

    from fedsim.engine import EngineSettings, open_grid

    logging.disable(logging.WARNING)
    total = int(count)
    keys = [f"c{i:05d}" for i in range(500)]
    content = RecordDict({"message": ConfigRecord({"values": [0.5] * 41, "name": "median"})})
    settings = EngineSettings(WORKERS, 1, None)
    with open_grid("ray", "benchmarks.echo:app", keys, {}, settings) as grid:
        nodes = list(grid.get_node_ids())
        source = (
            Message(content, dst_node_id=nodes[i % len(nodes)], message_type="query.echo")
            for i in range(total)
        )
        list(_echoed(grid, source, 200))  # start the workers and import their modules
        began, cpu = time.perf_counter(), time.process_time()
        answered = sum(1 for _ in _echoed(grid, source, total))
        wall, spent = time.perf_counter() - began, time.process_time() - cpu
    print(
        f"{answered:,} messages and replies: {1000 * spent / answered:.3f} ms of driver CPU each, "
        f"{answered / wall:,.0f} per second"
    )


def _echoed(grid, source, count):  # type: ignore[no-untyped-def]
    """Send up to `count` messages, at most 128 at a time, and yield the replies."""
    waiting: set[str] = set()
    sent = 0
    while True:
        batch = []
        while len(waiting) + len(batch) < 128 and sent < count:
            message = next(source, None)
            if message is None:
                break
            batch.append(message)
            sent += 1
        waiting |= set(grid.push_messages(batch))
        if not waiting:
            return
        for reply in grid.pull_messages(list(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            yield reply


def start(repeats: str = "5") -> None:
    """Time `fedsim --help` and a run of 8 clients in a new process; print medians of `repeats`."""
    helped, cold = [], []
    with tempfile.TemporaryDirectory() as scratch:
        study = _voices(Path(scratch), 8)
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
            wall, _, peaks = _run(file, Path(scratch) / "run")
            disk = sum(f.stat().st_size for f in (Path(scratch) / "run").rglob("*") if f.is_file())
        worker = (found.worker_bytes or 0) / 2**20
        print(
            f"{name}: estimated {found.seconds:.0f} s, took {wall:.0f}, ratio "
            f"{found.seconds / wall:.2f}; worker {worker:.0f} MB, {peaks['worker']:.0f}; disk "
            f"{found.disk_bytes / 2**20:.1f} MB, {disk / 2**20:.1f}",
            flush=True,
        )


def _voices(folder: Path, clients: int, count: int = WORKERS) -> Path:
    study = folder / f"voices{clients}-{count}.yaml"
    corpus = VOICES.format(clients=clients)
    study.write_text(SCENARIO.format(corpus=corpus, workers=count))
    return study


def _run(study: Path, out: Path) -> tuple[float, float, dict[str, float]]:
    """Run a study; return wall seconds, the seconds in its timing.json, and peak memory in MB.

    Peak memory is the kernel's high-water mark of the resident memory, of the driver and of its
    largest worker.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scale", "one", str(study), str(out)],
        env={**os.environ, **THREADS},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peaks = {"driver": 0.0, "worker": 0.0}
    while True:
        try:  # look rarely, because looking takes time from what is measured
            process.wait(timeout=2.0)
            break
        except subprocess.TimeoutExpired:
            peaks["worker"] = max([peaks["worker"], *map(_peak_mb, _workers_of_ray())])
    wall = time.perf_counter() - began
    assert process.returncode == 0, f"{study} ended with {process.returncode}"
    timing = json.loads((out / "timing.json").read_text())
    peaks["driver"] = float((out / "peak_mb").read_text())
    return wall, float(timing["seconds"]), peaks


def one(study: str, out: str) -> None:
    """Run a study and write the peak memory of this process into its folder."""
    from fedsim.cli import main as command

    code = command(["run", study, "--out", out])
    (Path(out) / "peak_mb").write_text(f"{_peak_mb(os.getpid())}")
    sys.exit(code)


def _workers_of_ray() -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::"):
                yield int(folder.name)


def _peak_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(found[0].split()[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    main()
