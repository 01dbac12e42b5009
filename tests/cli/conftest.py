from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

YAML = """\
name: small
description: Two voices.
model: {id: org/model}
corpus: {path: ./clips, group_by: speaker, test_clips: 2}
clients: {budget_mb: [30, 40.5]}
methods: [fp32]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with small.yaml, a broken.yaml and clips of two speakers, all empty."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(YAML)
    Path("broken.yaml").write_text(YAML.replace("budget_mb", "budgt_mb"))
    Path("clips").mkdir()
    lines = ["file_name,speaker,text"]
    for speaker, count in (("ann", 5), ("bob", 3)):
        for i in range(count):
            lines.append(f"{speaker}{i}.wav,{speaker},a word")
            Path("clips", f"{speaker}{i}.wav").write_bytes(b"")
    Path("clips/metadata.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def python(folder) -> Callable[..., subprocess.Popen]:
    """Return a function that starts another Python, which finds modules in the working folder."""

    def start(*words: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    return start
