"""An exported model where neither torch nor fedsim is installed: docs/examples/recognize.py."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

import pytest
import toys

import fedsim
from fedsim.speech.models import load_model

EXAMPLE = Path(__file__).parents[2] / "docs/examples/recognize.py"
QUICK = {"allocation": "shuffled", "rounding": "nearest", "calibration": "float"}
CLIPS = toys.clips((0.5, 0.8), seed=3)


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a new environment with onnx-asr and what that needs."""
    home = tmp_path_factory.mktemp("bare")
    venv.create(home, with_pip=True)
    interpreter = home / "bin/python"
    install = [interpreter, "-m", "pip", "install", "-q", "onnx-asr[cpu]==0.12.0"]
    if subprocess.run(install, capture_output=True, check=False).returncode:
        pytest.skip("PyPI does not answer")
    return interpreter


@pytest.mark.slow
def test_whisper_is_recognized_without_torch_and_fedsim(python, tmp_path):
    """As with the same loader here, which tests of Whisper hold against transformers."""
    loader = pytest.importorskip("onnx_asr")
    toys.save(toys.whisper(max_target_positions=448), tmp_path / "model")  # it decodes as many
    model = load_model(tmp_path / "model")
    mine = fedsim.personalize(
        model, CLIPS, budget_mb=0.2, bit_depths=(4, 6), language="it", **QUICK
    )
    exported = mine.export(tmp_path / "onnx")
    toys.write_wav(tmp_path / "clip.wav", CLIPS[0], subtype="PCM_16")
    bare = {**os.environ, "PYTHONPATH": ""}
    missing = "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'fedsim')])"
    asked = subprocess.run(
        [python, "-c", missing], env=bare, cwd=tmp_path, capture_output=True, text=True
    )
    assert asked.stdout.strip() == "[None, None]"
    words = [python, EXAMPLE, exported.folder, "it", tmp_path / "clip.wav"]
    run = subprocess.run(words, env=bare, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    name, _, text = run.stdout.removesuffix("\n").partition("\t")
    assert name == str(tmp_path / "clip.wav")
    theirs = loader.load_model("whisper", exported.folder)
    assert text == theirs.recognize(str(tmp_path / "clip.wav"), language="it") != ""
