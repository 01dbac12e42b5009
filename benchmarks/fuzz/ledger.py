"""Damaged run folders, read as `fedsim report`, `--resume` and a device's privacy budget do.

The folder is of a finished run. A damaged file must be an error, or without effect on what is read;
a file that was damaged before its hash was written to the ledger may also be read as something
else, but by sound values only. No budget may grant more than is left.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fuzz import Finding
from fedsim.errors import FedsimError
from fedsim.privacy.budget import SPENT, Limit, spend, spent
from fedsim.report.page import render
from fedsim.results.bound import check_settings, seal
from fedsim.results.folder import RunFolder, open_run, read_results
from fedsim.results.ledger import Ledger
from fedsim.results.ledger_reader import read_ledger
from fedsim.results.runs import Part, read_runs
from fedsim.runner.single import collect, run_scenario
from fedsim.scenario import load_scenario

_SECONDS = 5.0
_SCENARIO = """\
name: damaged
model: {id: "bundled:keywords"}
corpus:
  kind: voices
  group_by: speaker
  population: {speakers: 4, topics: words}
  tuning_clips: 2
  test_clips: 2
clients: {budget_mb: 0.6}
methods: [fp32, uniform, myqasr]
privacy: {release: noisy, epsilon: 1.0, delta: 1.0e-6, budget: {epsilon: 1.5, delta: 1.0e-5}}
fleet: {devices: {watch: 1}}
engine: {kind: inprocess, workers: 1}
study: true
"""
_FILES = (
    *("ledger.sqlite",) * 4,
    *(SPENT,) * 3,
    *(f"{SPENT}.mark", "results.parquet", "timeline.parquet", "scenario.yaml"),
    *("layers.json", "timing.json", "versions.json", "privacy.json"),
)
_RENDERED = 0.05
"""Share of the folders that were read, of which the whole report is made."""
_whole: dict[Path, Any] = {}


def try_one(rng: random.Random, home: Path) -> Finding | None:
    """Damage one file of a copy of a run folder, and read all of it."""
    whole, copy = home / "whole", home / "copy"
    if whole not in _whole:
        _make(home, whole)
        _whole[whole] = _read(whole), _budgets(whole)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    file = copy / rng.choice(_FILES)
    _damage(rng, file)
    again = file.suffix in (".json", ".parquet") and rng.random() < 0.5
    if again:
        seal(RunFolder(copy))
    began, what = time.process_time(), None
    try:
        what = _read_all(rng, copy, _whole[whole], same=not again)
    except Exception:
        what = traceback.format_exc()
    if what is None and time.process_time() - began > _SECONDS:
        what = f"{time.process_time() - began:.1f} s"
    return None if what is None else Finding(_zipped(copy), f"{file.name}: {what}")


def _make(home: Path, whole: Path) -> None:
    (home / "scenario.yaml").write_text(_SCENARIO)
    run_scenario(load_scenario(home / "scenario.yaml"), whole)
    render(read_runs([whole]), [], [], 10)  # imports what it needs, once


def _read_all(rng: random.Random, folder: Path, before: Any, *, same: bool) -> str | None:
    """Return what was read badly, or None; `same`: nothing else may be read than what was."""
    parts, budgets = before
    readers: list[Callable[[], str | None]] = [
        lambda: _differs(rng, folder, parts, same=same),
        lambda: _results_differ(folder, parts, same=same),
        lambda: _grants(folder, budgets),
        lambda: _resumed(folder, parts),
    ]
    for read in readers:
        try:
            what = read()
        except FedsimError as error:
            text = str(error)
            # A scenario's mistakes are listed one per line, at most a screen of them.
            what = f"a long error: {text}" if len(text) > 2000 or text.count("\n") > 23 else None
        if what is not None:
            return what
    return None


def _read(folder: Path) -> Any:
    (run,) = read_runs([folder])
    return [_values(part) for part in run.parts]


def _values(part: Part) -> Any:
    names = ("rows", "plans", "sensed", "failures", "events", "releases", "layers", "timed")
    return {name: getattr(part, name) for name in (*names, "timing", "versions")}


def _differs(rng: random.Random, folder: Path, parts: Any, *, same: bool) -> str | None:
    found = _read(folder)
    if rng.random() < _RENDERED:
        render(read_runs([folder]), [], [], 10)
    if same and found != parts:
        # A scenario.yaml without `fleet`, and so on, is refused before: nothing may differ here.
        return "the report read something else, without an error"
    return None


def _results_differ(folder: Path, parts: Any, *, same: bool) -> str | None:
    try:
        rows = read_results(folder / "results.parquet")
    except FedsimError:
        return None
    _ = same, rows  # its hash is checked by the report: here it must not crash
    return None


def _resumed(folder: Path, parts: Any) -> str | None:
    """Read as a resumed run does, up to the first message."""
    run = open_run(folder)
    scenario = load_scenario(run.scenario)
    with read_ledger(run.ledger) as ledger:
        ledger.check()
        check_settings(ledger, folder, scenario)
    with Ledger(run.ledger) as ledger:
        ledger.begin_again()
        for stage in ("sense", "personalize", "evaluate"):
            list(ledger.kept(stage))
    if collect(run, scenario).rows != list(parts[0]["rows"]):
        return "the resumed run has other results, without an error"
    return None


def _budgets(folder: Path) -> dict[str, tuple[float, float]]:
    with read_ledger(RunFolder(folder).ledger) as ledger:
        clients = ledger.finished()
    return {client: spent(folder / SPENT, client) for client in sorted(clients)}


def _grants(folder: Path, before: dict[str, tuple[float, float]]) -> str | None:
    path = folder / SPENT
    for client, (epsilon, delta) in before.items():
        try:
            now = spent(path, client)
            if now != (epsilon, delta):
                return f"client {client!r} had spent {epsilon}, and now {now[0]}"
            if spend(path, client, "another", 0.6, 0.0, Limit(1.5, 1e-5)):
                return f"client {client!r} was granted 0.6 more of 1.5, of which it spent {epsilon}"
        except FedsimError:
            continue
    return None


def _damage(rng: random.Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    how = rng.choice(("bit", "bit", "bits", "bytes", "cut", "zeros", "moved", "json", "coded"))
    if file.suffix not in (".json", ".yaml", ".mark") and how in ("json", "coded"):
        how = "bit"
    if how in ("bit", "bits"):
        for _ in range(1 if how == "bit" else rng.randint(2, 20)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == "bytes":
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif how == "cut":
        del content[rng.choice((0, rng.randrange(len(content)))) :]
    elif how in ("zeros", "moved"):
        size = min(len(content), rng.choice((16, 512, 4096)))
        at, source = (rng.randrange(len(content) - size + 1) for _ in range(2))
        content[at : at + size] = bytes(size) if how == "zeros" else content[source : source + size]
    elif how == "coded":
        text = bytes(content).decode()
        content = bytearray(text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "cp500"))))
    elif rng.random() < 0.05:
        content = bytearray(b"[" * 20_000 + b"]" * 20_000)
    elif file.suffix != ".yaml":
        content = bytearray(json.dumps(_other(rng, json.loads(content))).encode())
    file.write_bytes(content)


_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1.5,
        10**400,
        -(2**63),
        float("nan"),
        float("inf"),
        "",
        "7",
        "é\0",
        "../..",
    ),
    *([], {}, [[]], {"a": {}}, [{"name": 1}], "x" * 100_000),
)


def _other(rng: random.Random, value: Any) -> Any:
    """Return JSON with one value, at any depth, replaced by another or gone."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        if rng.random() < 0.2:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _other(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], _other(rng, value[at]), *value[at + 1 :]]
    return rng.choice(_VALUES)


def _zipped(folder: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return packed.getvalue()
