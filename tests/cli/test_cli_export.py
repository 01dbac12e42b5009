"""`fedsim export`: files, the comparison, and mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import toys

import fedsim
from fedsim.cli import main

CLIPS = toys.clips((0.5, 0.8, 0.63), seed=3)


@pytest.fixture(scope="module")
def mine(model_folder):
    """A personalized toy."""
    model = fedsim.load_model(model_folder("ctc-layer"))
    return fedsim.personalize(model, CLIPS, budget_mb=0.027, bit_depths=(2, 4, 6, 8))


@pytest.fixture
def file(folder, mine) -> Path:
    """Its model file, and recordings beside it."""
    toys.write_corpus(
        folder / "speech",
        ("ann",),
        3,
        read=lambda clips, language: mine.transcribe(clips),
    )
    mine.save("ann.safetensors")
    return folder / "ann.safetensors"


@pytest.mark.slow
def test_a_file_that_was_made_for_the_format_says_that_it_fits(folder, model_folder, capsys):
    model = fedsim.load_model(model_folder("ctc-layer"))
    mine = fedsim.personalize(model, CLIPS, budget_mb=0.04, format="onnx")
    mine.save("ann.safetensors")
    assert main(["export", "ann.safetensors", "--no-check"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("than the model file; the budget was for these files, so they fit")
    assert sum(path.stat().st_size for path in Path("ann-onnx").iterdir()) <= 0.04 * 2**20


@pytest.mark.slow
def test_export_writes_the_files_and_compares(file, capsys):
    assert main(["export", "ann.safetensors", "--clips", "speech"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    sizes = {}
    for line in lines[:3]:
        name, size = re.fullmatch(r"(\S+): ([\d,]+) bytes", line).groups()
        sizes[name] = int(size.replace(",", ""))
    assert sizes == {str(path): path.stat().st_size for path in sorted(Path("ann-onnx").iterdir())}
    more = sum(sizes.values()) - file.stat().st_size
    assert lines[3] == f"together {sum(sizes.values()):,} bytes, {more:,} more than the model file"
    rows = {line[:30].strip(): line[30:].split() for line in lines[5:11]}
    assert rows["transcripts equal to fedsim's"][0] == "3"
    assert len(rows["ms per second of audio"]) == len(rows["peak memory MB, at work"]) == 2
    assert main(["export", "ann.safetensors", "--no-check"]) == 1
    assert "ann-onnx is not empty: name a new folder" in capsys.readouterr().err


MISTAKES = [
    ("nowhere.safetensors", "nowhere.safetensors"),
    ("ann.safetensors --to tflite", "there is no export format 'tflite'"),
    ("ann.safetensors --clips speech --no-check", "remove one"),
    ("ann.safetensors --clips nowhere", "nowhere"),
    ("ann.safetensors --model bundled:keywords", "whose layers differ"),
]


@pytest.mark.parametrize(("words", "text"), MISTAKES)
def test_mistakes(file, words, text, capsys):
    assert main(["export", *words.split()]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert text in err
    assert not Path("ann-onnx").exists()


@pytest.mark.slow
def test_export_to_openvino_compares_there(file, capsys):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    assert main(["export", "ann.safetensors", "--to", "openvino", "--clips", "speech"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    names = sorted(path.name for path in Path("ann-openvino").iterdir())
    assert names == ["config.json", "openvino_model.bin", "openvino_model.xml", "vocab.txt"]
    lines = out.splitlines()
    assert re.split(r"  +", lines[6].strip())[1:] == [
        *("fedsim", "openvino, float32", "openvino, default")
    ]
    assert lines[7].split()[-2] == "3"  # equal in float32
