"""Short studies of other kinds: Whisper, a classifier, masked batches, a data set of parquet."""

from __future__ import annotations

import paper
import pytest
import toys
from fedsim_clients.saving import model_name

from fedsim import load_personalized
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario
from fedsim.speech.clips import read_utterance
from fedsim.speech.corpus import open_clients
from fedsim.speech.models.base import transcribe_clips
from fedsim.speech.scoring import count_correct, count_errors

METHODS = [
    "fp32",
    {"allocation": "uniform", "calibration": ["none"]},
    {
        "allocation": "myqasr",
        "calibration": ["minmax", "cosine", "hessian"],
        "tuned_on": ["own", "other"],
    },
]


@pytest.fixture
def run(tmp_path, model_folder):
    """Run METHODS on a toy; return the scenario and the result."""

    def run_(name, corpus, budget, group_by="speaker", methods=METHODS, **sections):
        file = toys.write_scenario(
            tmp_path / "toy.yaml",
            model={"id": str(model_folder(name)), "batch_size": 4},
            corpus={"group_by": group_by, "tuning_clips": 3, "test_clips": 3, **corpus},
            clients={"budget_mb": budget},
            methods=methods,
            save_models=True,
            **{"quantization": paper.QUANTIZATION, **sections},
        )
        scenario = load_scenario(file)
        result = run_scenario(scenario, tmp_path / "run")
        assert result.failures == []
        return scenario, result

    return run_


def count_saved(scenario, result, client, count, language=None):
    """Return (row, counts of its saved model on the test clips) for each of a client's own."""
    data = open_clients(scenario.corpus, scenario.clients, scenario.seed)[client]
    clips = [read_utterance(u) for u in data.test]
    pairs = []
    for row in result.rows:
        if row.client == client and row.method != "fp32" and row.tuned_on in ("", client):
            path = result.folder.models / model_name(client, row.method)
            heard = load_personalized(path, language=language).transcribe(clips)
            pairs.append((row, count([u.text for u in data.test], heard)))
    assert len(pairs) == 4
    return pairs


def test_whisper(run, speech, tmp_path):
    """Clients are languages; full precision repeats the transcripts that are its references."""

    def read(clips, language):
        return transcribe_clips(speech("whisper"), clips, language)

    keys = ["de", "en", "it"]
    corpus = toys.write_corpus(tmp_path / "clips", keys, languages=keys, read=read)
    scenario, result = run("whisper", {"path": str(corpus)}, 0.075, group_by="language")
    assert {r.client for r in result.rows} == set(keys)
    assert len(result.rows) == 3 * 8
    full = [r for r in result.rows if r.method == "fp32"]
    assert [r.errors for r in full] == [0, 0, 0]
    assert all(r.words for r in full)
    state = {t.data_ptr(): t.nbytes for t in speech("whisper").module.state_dict().values()}
    assert {r.file_bytes for r in full} == {sum(state.values())}  # the tied table counted once
    assert max(r.errors for r in result.rows) > 0
    for row in result.rows:
        assert 0 <= row.looped <= row.clips
        assert row.looped_errors <= row.errors
        assert row.looped_words <= row.words
        rest = row.words - row.looped_words
        rate = (row.errors - row.looped_errors) / rest if rest else None
        assert row.rate_without_loops == rate
    assert sum(r.looped for r in result.rows) > 0
    for row, counted in count_saved(scenario, result, "de", count_errors, language="de"):
        assert (counted.errors, counted.words) == (row.errors, row.words)


def test_a_classifier(run, speech, tmp_path):
    def read(clips, language):
        heard = transcribe_clips(speech("classifier"), clips)
        return ["YES", *heard[1:]]  # one reference of six may be another class

    corpus = toys.write_corpus(tmp_path / "clips", ["ann", "bob", "cyd"], read=read)
    scenario, result = run("classifier", {"path": str(corpus)}, 0.05)
    assert len(result.rows) == 3 * 8
    for row in result.rows:
        assert row.accuracy == row.correct / row.clips
        assert row.clips == 3
        counts = (row.errors, row.words, row.wer, row.char_errors, row.chars, row.cer)
        assert counts == (None,) * 6
        loops = (row.looped, row.looped_errors, row.looped_words, row.rate_without_loops)
        assert loops == (None,) * 4
        assert row.method != "fp32" or row.correct >= 2
    assert len({row.correct for row in result.rows}) > 1
    for row, counted in count_saved(scenario, result, "bob", count_correct):
        assert counted.correct == row.correct


def test_masked_batches_and_one_scale_per_tensor(run, speech, tmp_path):
    def read(clips, language):
        return transcribe_clips(speech("ctc-layer"), clips)

    corpus = toys.write_corpus(tmp_path / "clips", ["ann", "bob", "cyd"], read=read)
    quantization = {"weights": "per_tensor", "activation_bits": 7, "sensitivity": "abs-max"}
    quantization = {**paper.QUANTIZATION, **quantization}
    scenario, result = run("ctc-layer", {"path": str(corpus)}, 0.03, quantization=quantization)
    assert {r.errors for r in result.rows if r.method == "fp32"} == {0}
    for row, counted in count_saved(scenario, result, "cyd", count_errors):
        assert (counted.errors, counted.char_errors) == (row.errors, row.char_errors)


def test_a_data_set_of_parquet_grouped_by_its_classes(run, tmp_path, parquet):
    """Columns are mapped, the class names of a ClassLabel are the clients."""
    corpus = {
        "kind": "hub",
        "path": str(parquet),
        "split": "train",
        "columns": {"audio": "sound", "gender": "sex", "text": "said"},
    }
    _, result = run("ctc-group", corpus, 0.04, group_by="gender", methods=["fp32", "uniform"])
    assert sorted({r.client for r in result.rows}) == ["female", "male"]
