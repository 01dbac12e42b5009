"""On a real GPU: pytest -m gpu. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toys

from fedsim.personal import personalize
from fedsim.quant.measures import MEASURES
from fedsim.quant.moments import second_moments
from fedsim.quant.sensitivity import sense
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario
from fedsim.speech.models import load_model
from fedsim.speech.models.base import own_tokens, transcribe_clips, tuning_batches
from fedsim.speech.tuning import tuning_pass

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]

NAMES = ("ctc-group", "ctc-layer", "conformer", "classifier", "whisper")
CLIPS = toys.clips([0.4, 0.4, 0.55])
TOLERANCE = 1e-3
"""Of a statistic, relative: sums are taken in another order, and a median may be the next value."""


@pytest.fixture(scope="module")
def both(model_folder):
    """Name of a toy -> that model on the processor, and on the GPU."""
    return lambda name: [
        load_model(model_folder(name), batch_size=4, device=d) for d in ("cpu", "cuda")
    ]


def batches(model):
    tokens = own_tokens(model, CLIPS, "en")
    return tuning_batches(model, CLIPS, tokens, "en")


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_those_of_the_processor(both, name):
    here, there = both(name)
    for measure in MEASURES.names():
        np.testing.assert_allclose(
            sense(there, batches(there), measure),
            sense(here, batches(here), measure),
            rtol=TOLERANCE,
            atol=TOLERANCE,
            err_msg=measure,
        )
    expected = second_moments(here, batches(here))
    for layer, found in second_moments(there, batches(there)).items():
        np.testing.assert_allclose(found.mean, expected[layer].mean, rtol=0.01, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_observations_are_those_of_the_processor(both, name):
    here, there = both(name)
    found, expected = (
        tuning_pass(m, CLIPS, "en").observe(["hessian"]).observed for m in (there, here)
    )
    for layer, seen in expected.items():
        assert found[layer].rows.is_cuda
        assert found[layer].high == pytest.approx(seen.high, rel=TOLERANCE, abs=TOLERANCE)
        torch.testing.assert_close(found[layer].rows.cpu(), seen.rows, rtol=0.01, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_model_every_time(both, tmp_path, name):
    """To the byte; its plan is that of the processor, and so are its transcripts' counts."""
    here, there = both(name)
    options = {"budget_mb": 4.0, "public_clips": CLIPS, "language": "en", "bit_depths": [3, 8]}
    files = []
    for i in range(2):
        made = personalize(there, CLIPS, **options)
        made.save(tmp_path / str(i))
        files.append((tmp_path / str(i)).read_bytes())
        assert len(made.transcribe(CLIPS)) == len(CLIPS)
    assert files[0] == files[1]
    assert personalize(here, CLIPS, **options).bits == made.bits


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_the_bytes(model_folder, dtype):
    model = load_model(model_folder("whisper"), device="cuda", dtype=dtype)
    assert len(transcribe_clips(model, CLIPS, "en")) == len(CLIPS)
    assert np.isfinite(sense(model, batches(model))).all()


def test_a_run_gives_the_same_table_every_time(model_folder, tmp_path):
    corpus = toys.write_corpus(tmp_path / "corpus", toys.SPEAKERS[:2])
    file = toys.write_scenario(
        tmp_path / "s.yaml",
        model={"id": str(model_folder("ctc-layer"))},
        corpus={"path": str(corpus), "group_by": "speaker"},
        clients={"budget_mb": 1},
        methods=["fp32", {"allocation": "myqasr", "calibration": ["cosine"]}],
        engine={"kind": "inprocess", "device": "cuda"},
    )
    tables = [
        _results(run_scenario(load_scenario(file), tmp_path / name).folder.path)
        for name in ("first", "second")
    ]
    assert tables[0] == tables[1]


def _results(folder: Path) -> bytes:
    assert "cuda" in (folder / "versions.json").read_text()
    return (folder / "results.parquet").read_bytes()
