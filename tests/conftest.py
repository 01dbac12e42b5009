"""Fixtures that several folders share: tiny models, loaded once, and one finished study."""

from __future__ import annotations

import gc
import os
import tempfile

# Read when transformers and Flower load: no test goes to the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FEDSIM_DEVICE"] = "cpu"  # also where there is a GPU: tests marked gpu ask for it
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores
    # Ray's processes too: at their usual low priority they hardly run beside other tests.
    os.environ.setdefault("RAY_worker_niceness", "0")

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import paper
import pytest
from properties import examples

# No test reads or writes the user's own cache. Set here, before the workers of xdist start: they
# share one, as do the processes that tests start, and make public clips and traced graphs once.
_CACHE = None
if "FEDSIM_TEST_CACHE" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="fedsim-tests-")
    os.environ["FEDSIM_TEST_CACHE"] = _CACHE.name
os.environ["FEDSIM_CACHE"] = os.environ["FEDSIM_TEST_CACHE"]

# Thousands of test functions and the modules of torch stay until the end: the collector passes over
# none of them, neither while they are made nor in any test, and it works less often.
gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


hypothesis.settings.register_profile(
    "fedsim", max_examples=examples(100), deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("fedsim")

if TYPE_CHECKING:
    from own_engine import OwnEngine

    from fedsim.runner.single import RunResult
    from fedsim.scenario import Scenario
    from fedsim.speech.models.base import SpeechModel


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Callable[[str], Path]:
    """Name of a toy in `toys.MODELS` -> a folder with that model, written once."""
    import torch
    import toys

    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("models")
    return cache(lambda name: toys.save(toys.MODELS[name](), home / name))


@pytest.fixture(scope="session")
def speech(model_folder) -> Callable[[str], SpeechModel]:
    """Name of a toy -> that model, loaded once: a test that changes it puts it back."""
    from fedsim.speech.models import load_model

    return cache(lambda name: load_model(model_folder(name), batch_size=4))


@dataclass(frozen=True)
class Study:
    """A scenario of five speakers and all methods, and the result of its run."""

    file: Path
    scenario: Scenario
    result: RunResult


@pytest.fixture(scope="session")
def study(tmp_path_factory, model_folder, speech) -> Study:
    """The study of the end-to-end tests, run once by the in-process engine.

    References are the model's own transcripts, with one word more in every clip of an even number:
    full precision makes one error in each of these and no other.
    """
    import toys

    from fedsim.runner.single import run_scenario
    from fedsim.scenario import load_scenario
    from fedsim.speech.models.base import transcribe_clips

    def read(clips, language):
        heard = transcribe_clips(speech("ctc-group"), clips)
        return [f"{text} more" if i % 2 == 0 else text for i, text in enumerate(heard)]

    home = tmp_path_factory.mktemp("study")
    corpus = toys.write_corpus(home / "clips", read=read)
    file = toys.write_scenario(
        home / "toy.yaml",
        model={"id": str(model_folder("ctc-group")), "batch_size": 4},
        corpus={"path": str(corpus), "group_by": "speaker", "tuning_clips": 3, "test_clips": 3},
        clients={"budget_mb": [0.0334, 0.0302, 0.0311]},
        quantization=paper.QUANTIZATION,
        methods=toys.METHODS,
        save_models=True,
    )
    scenario = load_scenario(file)
    return Study(file, scenario, run_scenario(scenario, home / "run"))


@pytest.fixture
def engine() -> Iterator[OwnEngine]:
    """An engine called `own`: the in-process one, with what the test puts around it."""
    from own_engine import own_engine

    with own_engine() as made:
        yield made


@pytest.fixture(scope="session")
def parquet(tmp_path_factory) -> Path:
    """A local data set of 16 clips for `datasets.load_dataset`, with columns to be mapped."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    import toys

    home = tmp_path_factory.mktemp("parquet")
    datasets.config.HF_DATASETS_CACHE = home / "cache"
    features = datasets.Features(
        {
            "sound": datasets.Audio(sampling_rate=16_000),
            "sex": datasets.ClassLabel(names=["male", "female"]),
            "said": datasets.Value("string"),
            "who": datasets.Value("int64"),
            "locale": datasets.Value("string"),
        }
    )
    for i in range(16):
        toys.write_wav(home / f"wav/{i}.wav", toys.clip(0.3 + 0.02 * i, i))
    columns = {
        "sound": [
            {"bytes": (home / f"wav/{i}.wav").read_bytes(), "path": f"{i}.wav"} for i in range(16)
        ],
        "sex": [0, 1] * 8,
        "said": [f"clip number {i}" for i in range(16)],
        "who": [i // 4 for i in range(16)],
        "locale": ["en_us"] * 8 + ["it_it"] * 7 + [None],
    }
    (home / "data").mkdir()
    # Not by datasets' own writer, which wants torchcodec to put audio into a table.
    pq.write_table(pa.table(columns, schema=features.arrow_schema), home / "data/train.parquet")
    return home / "data"
