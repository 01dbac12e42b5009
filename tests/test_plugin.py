"""A package that knows nothing of this repository adds an allocator, a corpus reader, a
normalizer of texts and a release.

It is laid out as pip would install it, in a folder of the test's own; runs are other processes.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

PLUGIN = Path(__file__).parent / "plugin" / "house_style.py"
ENTRY_POINTS = """\
[fedsim.allocation]
by_weight = house_style:ALLOCATOR
[fedsim.corpus]
named = house_style:READER
[fedsim.text_normalizer]
capitals = house_style:TEXTS
[fedsim.release]
half = house_style:RELEASE
"""
SCENARIO = """\
name: plugged
model: {id: "bundled:ctc"}
corpus: {kind: named, path: recordings, group_by: speaker, tuning_clips: 2, test_clips: 2}
clients: {budget_mb: 2}
privacy: {release: half}
text_normalizer: capitals
methods: [{allocation: by_weight, calibration: minmax}]
study: true
quantization: {rounding: nearest, activations: static}
"""


@pytest.fixture
def fedsim(tmp_path):
    """Run a command where the plug-in is installed; return its output."""
    site = tmp_path / "site"
    info = site / "house_style-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(PLUGIN, site)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: house-style\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)

    def run(*words: str, installed: bool = True) -> subprocess.CompletedProcess[str]:
        paths = [str(site)] * installed + [p for p in sys.path if p]
        return subprocess.run(
            [sys.executable, "-m", "fedsim", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def study(tmp_path):
    """A scenario that names all four, and recordings as the reader wants them."""
    rng = np.random.default_rng(0)
    (tmp_path / "recordings").mkdir()
    for speaker in ("ann", "bob"):
        for i, text in enumerate(("turn-on", "lights-off", "play-music", "stop")):
            clip = 0.1 * rng.standard_normal(8_000 + 800 * i)
            soundfile.write(tmp_path / f"recordings/{speaker}_{text}.wav", clip, 16_000)
    (tmp_path / "study.yaml").write_text(SCENARIO)
    return tmp_path


@pytest.mark.slow
def test_a_run_uses_all_four(fedsim, study):
    ran = fedsim("run", "study.yaml", "--out", "run", "--engine", "inprocess", "--no-report")
    assert ran.returncode == 0, ran.stderr
    assert "by_weight/minmax" in ran.stdout
    assert "texts normalized by capitals" in " ".join(ran.stdout.split())  # lines may be wrapped
    assert "Each device sends 2 bytes per layer, without noise." in ran.stdout
    layers = json.loads((study / "run/layers.json").read_text())
    with sqlite3.connect(study / "run/ledger.sqlite") as ledger:
        rows = ledger.execute("SELECT client, release, length(payload) FROM payloads").fetchall()
    assert rows == [(name, "half", 2 * len(layers)) for name in ("ann", "bob")]
    reported = fedsim("report", "run")
    assert reported.returncode == 0, reported.stderr
    assert "large, loud layers lose bits" in (study / "run/report.html").read_text()


def test_they_are_listed_and_offered_to_editors(fedsim):
    listed = fedsim("list").stdout
    for summary in (
        "Algorithm 1 by value times bytes.",
        "speaker_text.wav",
        "Capitals",
        "half precision",
    ):
        assert summary in listed
    schema = fedsim("validate", "--schema").stdout
    assert all(f'"{name}"' in schema for name in ("by_weight", "named", "capitals", "half"))


def test_without_the_package_each_name_is_refused_with_its_line(fedsim, study):
    refused = fedsim("validate", "study.yaml", installed=False)
    assert refused.returncode == 1
    lines = refused.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "study.yaml:3",
        "study.yaml:5",
        "study.yaml:6",
        "study.yaml:7",
    ]
    assert "Traceback" not in refused.stderr


def test_it_takes_forty_lines():
    assert len(PLUGIN.read_text().splitlines()) <= 40
