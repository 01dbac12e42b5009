"""Whole runs, each in a process of its own: their seconds and peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


def voices(folder: Path, clients: int, count: int = WORKERS) -> Path:
    """Write a study of synthetic voices on `count` workers."""
    study = folder / f"voices{clients}-{count}.yaml"
    corpus = VOICES.format(clients=clients)
    study.write_text(SCENARIO.format(corpus=corpus, workers=count))
    return study


def run(study: Path, out: Path) -> tuple[float, float, dict[str, float]]:
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
