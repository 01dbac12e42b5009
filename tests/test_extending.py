"""The four packages of docs/extending.md, as they stand there: installed in a folder of the test's
own, listed, and run. Runs are other processes, so no entry stays in this one's registries."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import toys
import yaml

from fedsim.errors import BudgetError, FedsimError
from fedsim.privacy.release_params import ReleaseParams
from fedsim.quant.sizes import Sizes

PAGE = Path(__file__).parents[1] / "docs/extending.md"
SECTIONS = ("An allocator", "A release", "A reader of recordings", "A family of models")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ANSWERS = """\
import json, sys
import numpy as np, torch, transformers
from fedsim import load_model, personalize
from fedsim.speech.models.base import transcribe_clips

clips = [clip for clip in np.load("clips.npz").values()]
model = load_model("ast", batch_size=4)
own = transformers.ASTForAudioClassification.from_pretrained("ast").eval()
extractor = transformers.AutoFeatureExtractor.from_pretrained("ast")
with torch.no_grad():
    alone = [
        own(**extractor(clip, sampling_rate=16_000, return_tensors="pt")).logits.argmax()
        for clip in clips
    ]
heard = transcribe_clips(model, clips)
small = personalize("ast", clips, budget_mb=0.06, allocation="myqasr", rounding="nearest")
named = [own.config.id2label[int(i)] for i in alone]
print(json.dumps([heard, named, len(set(small.bits.values()))]))
"""


def blocks(section: str) -> list[tuple[str, str]]:
    """Language and code of each block of one section."""
    _, _, text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")
    return _BLOCK.findall(text.partition("\n## ")[0])


def files(section: str) -> dict[str, str]:
    """Path -> content of the package that a section shows."""
    named = (code.partition("\n") for language, code in blocks(section) if language != "yaml")
    return {head.removeprefix("# "): rest for head, _, rest in named}


def names(section: str) -> dict[str, Any]:
    """What its module defines."""
    defined: dict[str, Any] = {}
    _, (name, code) = files(section).items()
    exec(compile(code, name, "exec"), defined)
    return defined


def setting(section: str) -> dict:
    """What its scenario says."""
    (code,) = (code for language, code in blocks(section) if language == "yaml")
    return yaml.safe_load(code)


@pytest.fixture
def site(tmp_path) -> Path:
    """A folder with all four packages, laid out as pip lays them out."""
    for section in SECTIONS:
        project, module = files(section).items()
        about = tomllib.loads(project[1])["project"]
        place = tmp_path / "site"
        info = place / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
        info.mkdir(parents=True)
        (place / Path(module[0]).name).write_text(module[1])
        names = f"Name: {about['name']}\nVersion: {about['version']}\n"
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{names}")
        groups = about["entry-points"].items()
        lines = [
            f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items())
            for group, entries in groups
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
    return tmp_path / "site"


def python(folder: Path, site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = [str(site), *filter(None, sys.path)]
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )


def write_vctk(root: Path) -> None:
    """Three speakers as VCTK has them; the last has no texts, as its p315."""
    for number, speaker in enumerate(("p225", "p226", "p315")):
        for take in range(1, 5):
            clip = toys.clip(0.5, seed=10 * number + take)
            folder = root / f"wav48_silence_trimmed/{speaker}"
            folder.mkdir(parents=True, exist_ok=True)
            for microphone in ("mic1", "mic2"):
                name = f"{speaker}_{take:03}_{microphone}.flac"
                soundfile.write(folder / name, np.repeat(clip, 3), 48_000)
            if speaker != "p315":
                text = root / f"txt/{speaker}/{speaker}_{take:03}.txt"
                text.parent.mkdir(parents=True, exist_ok=True)
                text.write_text(f"{toys.WORDS[take]} {toys.WORDS[number]}\n")
    (root / "speaker-info.txt").write_text(
        "ID  AGE  GENDER  ACCENTS  REGION COMMENTS\n"
        "p225  23  F    English    Southern  England\n"
        "p226  22  M    English    Surrey\n"
        "p315  18  M    American   New  England (no text)\n"
    )


@pytest.mark.parametrize("budget", [11, 27, 28, 40, 60, 61, 99])
def test_the_allocator_gives_the_middle_the_most_that_fits(budget):
    depths = (2, 4, 8, 16)
    sizes = Sizes(depths, np.outer([1, 2, 1, 1], depths), 1)  # bytes: 1 + bits, twice for one layer
    plans = [(2, 2, 2, 2), *((max(d, 8), d, d, max(d, 8)) for d in depths)]
    best = max((p for p in plans if sizes.total(p) <= budget), key=sizes.total)
    assert names("An allocator")["plan"](None, sizes, budget, None) == best


def test_the_allocator_names_the_smallest_file_that_there_is():
    sizes = Sizes((2, 4), np.array([[2, 4], [2, 4], [2, 4]]), 1)
    with pytest.raises(BudgetError, match="7 bytes"):
        names("An allocator")["plan"](None, sizes, 6, None)


def test_the_release_reads_what_it_makes_and_refuses_the_rest():
    release, params = names("A release")["RELEASE"], ReleaseParams(layers=10)
    values = np.array([5.0, 1, 9, 2, 8, 3, 7, 4, 6, 0])
    payload = release.make(values, params, None)
    assert len(payload) == 2
    assert release.read(payload, params).tolist() == [1, 0, 1, 0, 1, 0, 1, 0, 1, 0]
    for other in (b"", payload + b"\0", bytes([payload[0], payload[1] | 1])):
        with pytest.raises(FedsimError, match="release"):
            release.read(other, params)


@pytest.mark.parametrize("section", SECTIONS)
def test_each_takes_about_forty_lines(section):
    lines = [line for text in files(section).values() for line in text.splitlines() if line]
    assert len(lines) <= 45
    assert all(
        compile(text, name, "exec") for name, text in files(section).items() if ".py" in name
    )


def test_a_run_with_an_allocator_a_release_and_a_reader(site, tmp_path):
    scenario = {
        **{"name": "extended", "model": {"id": "bundled:ctc"}, "clients": {"budget_mb": 2}},
        "quantization": {"rounding": "nearest", "activations": "static"},
        **setting("A reader of recordings"),
        "privacy": setting("A release")["privacy"],
        "methods": [
            {**method, "calibration": "minmax"}
            for section in ("An allocator", "A release")
            for method in setting(section)["methods"]
        ],
    }
    write_vctk(tmp_path / scenario["corpus"]["path"])
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(scenario))
    words = ("run", "study.yaml", "--out", "run", "--engine", "inprocess", "--no-report")
    ran = python(tmp_path, site, "-m", "fedsim", *words)
    assert ran.returncode == 0, ran.stderr
    assert "ends_at_eight" in ran.stdout
    assert "Each device sends one bit for each layer." in " ".join(ran.stdout.split())
    layers = json.loads((tmp_path / "run/layers.json").read_text())
    with sqlite3.connect(tmp_path / "run/ledger.sqlite") as ledger:
        rows = ledger.execute("SELECT client, length(payload) FROM payloads").fetchall()
    assert rows == [(name, -(-len(layers) // 8)) for name in ("p225", "p226")]


def test_all_four_are_listed(site, tmp_path):
    listed = python(tmp_path, site, "-m", "fedsim", "list")
    assert listed.returncode == 0, listed.stderr
    for section in SECTIONS:
        (summary,) = re.findall(r'    summary="(.+)",', "".join(files(section).values()))
        assert summary in " ".join(listed.stdout.split())


@pytest.mark.slow
def test_the_readers_layout_is_recognized(site, tmp_path):
    write_vctk(tmp_path / "VCTK-Corpus-0.92")
    corpus = setting("A reader of recordings")["corpus"] | {"kind": "auto"}
    scenario = {"model": {"id": "bundled:ctc"}, "clients": {"budget_mb": 2}, "methods": ["fp32"]}
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump({"name": "auto", **scenario, "corpus": corpus})
    )
    checked = python(tmp_path, site, "-m", "fedsim", "validate", "study.yaml")
    assert checked.returncode == 0, checked.stderr
    assert "p226" in checked.stdout
    assert "p315" not in checked.stdout


@pytest.mark.slow
def test_a_family_answers_as_transformers_does(site, tmp_path):
    import torch
    import transformers

    config = transformers.ASTConfig(
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 64, "max_length": 128, "id2label": dict(enumerate(toys.CLASSES))},
    )
    torch.manual_seed(5)
    network = transformers.ASTForAudioClassification(config)
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.add_(0.2 * torch.randn(tensor.shape))
    network.save_pretrained(tmp_path / "ast")
    transformers.ASTFeatureExtractor(max_length=128).save_pretrained(tmp_path / "ast")
    clips = toys.clips([0.31, 0.5, 0.5, 0.1, 0.77, 1.2, 0.2, 0.31])
    np.savez(tmp_path / "clips.npz", *clips)
    ran = python(tmp_path, site, "-c", ANSWERS)
    assert ran.returncode == 0, ran.stderr
    heard, alone, depths = json.loads(ran.stdout.splitlines()[-1])
    assert heard == alone
    assert len(set(heard)) > 1
    assert depths > 1


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_pip_builds_and_installs_each(section, tmp_path):
    for name, text in files(section).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (folder,) = tmp_path.iterdir()
    words = ("--no-deps", "--no-build-isolation", "-q", "--target", tmp_path / "there", folder)
    subprocess.run([sys.executable, "-m", "pip", "install", *map(str, words)], check=True)
    listed = python(tmp_path, tmp_path / "there", "-m", "fedsim", "list")
    assert listed.returncode == 0, listed.stderr
    (summary,) = re.findall(r'    summary="(.+)",', "".join(files(section).values()))
    assert summary in " ".join(listed.stdout.split())
