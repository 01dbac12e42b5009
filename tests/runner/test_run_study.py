"""One study from YAML to results.parquet: every row, and every number in it that can be known."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import toys
from fedsim_clients.saving import model_name

from fedsim import load_personalized
from fedsim.personal import PersonalizedModel
from fedsim.quant import modelfile
from fedsim.quant.allocation import allocate, mean_bits
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.modelfile import ModelFile
from fedsim.quant.profile import profile_of
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.sensitivity import sense
from fedsim.quant.switch import switch_of
from fedsim.results.folder import read_results
from fedsim.results.ledger import Ledger
from fedsim.scenario import load_scenario
from fedsim.speech.clips import read_utterance
from fedsim.speech.corpus import open_clients
from fedsim.speech.models.base import tuning_batches
from fedsim.speech.scoring import count_errors
from fedsim.study.model import load_study_model

KEYS = list(toys.SPEAKERS)
NEXT = dict(zip(KEYS, [*KEYS[1:], KEYS[0]], strict=True))


@pytest.fixture(scope="module")
def rows(study):
    return {(row.client, row.method, row.tuned_on): row for row in study.result.rows}


@pytest.fixture(scope="module")
def clients(study):
    return open_clients(study.scenario.corpus, study.scenario.clients, study.scenario.seed)


@pytest.fixture(scope="module")
def packable(study):
    return load_study_model(study.scenario)


@pytest.fixture(scope="module")
def model(packable):
    return packable.model


@pytest.fixture(scope="module")
def sizes(packable):
    assert packable.sizes.depths == tuple(range(2, 17))
    return packable.sizes


@pytest.fixture(scope="module")
def medians(clients, model):
    """Client -> the layer profile that its tuning clips give."""
    clips = {k: [read_utterance(u) for u in c.tuning] for k, c in clients.items()}
    found = {k: sense(model, tuning_batches(model, c, None)) for k, c in clips.items()}
    return {k: profile_of(values, "median") for k, values in found.items()}


def test_there_is_a_row_for_every_client_method_and_source(rows):
    expected = set()
    for client in KEYS:
        tuned = {"fp32": "", "uniform/none": "", "shuffled/none": ""}
        expected |= {(client, method, source) for method, source in tuned.items()}
        for calibration in ("minmax", "cosine", "none", "hessian"):
            expected |= {(client, f"myqasr/{calibration}", source) for source in KEYS}
        expected |= {
            (client, method, client)
            for method in (
                *("uniform/minmax", "myqasr-asc/cosine", "shuffled-1/cosine", "shuffled-2/cosine"),
                *("reversed/cosine", "reversed/none", "linear/cosine"),
            )
        }
        expected.add((client, "linear/cosine", NEXT[client]))
    assert set(rows) == expected


def test_nobody_failed(study):
    assert study.result.failures == []


def test_numbers_agree_with_each_other(study, rows):
    budgets = dict(zip(KEYS, [0.0334, 0.0302, 0.0311, 0.0334, 0.0302], strict=True))
    for row in rows.values():
        assert row.clips == 3
        assert row.budget_bytes == int(budgets[row.client] * 2**20)
        assert row.wer == row.errors / row.words
        assert row.cer == row.char_errors / row.chars
        assert row.low <= row.wer <= row.high
        assert (row.correct, row.accuracy) == (None, None)
        assert row.method.startswith(row.allocation)
        if row.method != "fp32":
            assert row.file_bytes <= row.budget_bytes
            assert row.calibration == row.method.split("/")[1]
    for client in KEYS:  # the references are the same for all
        same = {(r.words, r.chars) for r in rows.values() if r.client == client}
        assert len(same) == 1


def test_full_precision_makes_the_known_errors(study, rows, clients, model):
    state = {t.data_ptr(): t.nbytes for t in model.module.state_dict().values()}
    for client in KEYS:
        row = rows[client, "fp32", ""]
        more = sum(u.text.endswith(" more") for u in clients[client].test)
        assert row.errors == more  # one deletion for each word that was added to its transcript
        assert row.char_errors == more * len(" more")
        assert row.words == sum(len(u.text.split()) for u in clients[client].test)
        assert row.file_bytes == sum(state.values())
        assert (row.mean_bits, row.calibration, row.plan_sha256) == (32.0, "-", "")
    assert sum(rows[c, "fp32", ""].errors for c in KEYS) > 0


def test_the_study_distinguishes_methods(rows):
    """The other tests here compare numbers: they must not all be the same number."""
    assert len({row.errors for row in rows.values()}) > 5
    assert len({row.char_errors for row in rows.values()}) > 20
    assert len({row.plan_sha256 for row in rows.values()}) > 20
    differing = [
        client
        for client in KEYS
        if len({rows[client, "myqasr/cosine", s].char_errors for s in KEYS}) > 1
    ]
    assert differing


PLANNED = {
    "myqasr/cosine": ("myqasr", "descending"),
    "myqasr/none": ("myqasr", "descending"),
    "myqasr-asc/cosine": ("myqasr", "ascending"),
    "reversed/cosine": ("reversed", "descending"),
    "linear/cosine": ("linear", "descending"),
    "uniform/minmax": ("uniform", "descending"),
    "uniform/none": ("uniform", "descending"),
}


def test_plans_come_from_the_sources_clips_and_the_clients_budget(rows, model, sizes, medians):
    weights = [layer.n_weights for layer in model.layers]
    for method, (allocation, order) in PLANNED.items():
        found = [row for row in rows.values() if row.method == method]
        assert len(found) >= len(KEYS)
        for row in found:
            source = row.tuned_on or row.client
            bits = allocate(allocation, medians[source], sizes, row.budget_bytes, order=order)
            assert row.plan_sha256 == hashlib.sha256(bytes(bits)).hexdigest()
            assert row.file_bytes == sizes.total(bits)
            assert row.mean_bits == mean_bits(bits, weights)


def test_shuffled_plans(rows):
    for client in KEYS:
        first, second = (rows[client, f"shuffled-{i}/cosine", client] for i in (1, 2))
        assert first.plan_sha256 != second.plan_sha256
        public = rows[client, "shuffled/none", ""]
        assert public.plan_sha256 == first.plan_sha256  # the first draw is the same shuffle
    assert len({rows[c, "shuffled-1/cosine", c].plan_sha256 for c in KEYS}) == len(KEYS)


def transcribed(path, model, utterances):
    heard = load_personalized(path, model).transcribe([read_utterance(u) for u in utterances])
    return count_errors([u.text for u in utterances], heard)


def test_saved_models_are_the_ones_that_were_tested(study, rows, clients, model):
    """Every file that a run keeps, read by the public face, repeats its row."""
    folder = study.result.folder.models
    own = [r for r in rows.values() if r.method != "fp32" and r.tuned_on in ("", r.client)]
    assert len(list(folder.iterdir())) == len(own)
    for row in own:
        path = folder / model_name(row.client, row.method)
        assert os.path.getsize(path) == row.file_bytes
        counted = transcribed(path, model, clients[row.client].test)
        assert (counted.errors, counted.char_errors) == (row.errors, row.char_errors)


def test_a_saved_model_needs_nothing_but_its_file(study, rows, clients):
    path = study.result.folder.models / model_name("ann", "myqasr/cosine")
    row = rows["ann", "myqasr/cosine", "ann"]
    assert transcribed(path, None, clients["ann"].test).errors == row.errors


@pytest.mark.parametrize("calibration", ["minmax", "cosine", "hessian"])
def test_a_model_tuned_on_another_client(study, rows, clients, model, sizes, medians, calibration):
    """The source's plan for this client's budget, and the ranges that the source's device found."""
    method = f"myqasr/{calibration}"
    for client, source in (("ann", "bob"), ("dee", "ann")):
        row = rows[client, method, source]
        path = study.result.folder.models / model_name(source, method)
        found = modelfile.read(path, model.layers)
        bits = allocate("myqasr", medians[source], sizes, row.budget_bytes)
        full = switch_of(model).full_weights()
        weights = tuple(
            quantize_weight(full[layer.name], b, WeightFormat("per_channel"))
            for layer, b in zip(model.layers, bits, strict=True)
        )
        file = ModelFile(replace(found.manifest, bits=bits), weights, found.inputs, found.leftovers)
        foreign = PersonalizedModel(model, file, 0)
        test = clients[client].test
        counted = count_errors(
            [u.text for u in test], foreign.transcribe([read_utterance(u) for u in test])
        )
        assert (counted.errors, counted.char_errors) == (row.errors, row.char_errors)


def test_where_no_user_data_sets_the_ranges_all_clients_share_them(study, model):
    def inputs(client, method):
        path = study.result.folder.models / model_name(client, method)
        return modelfile.read(path, model.layers).inputs

    for method in ("uniform/none", "myqasr/none"):
        assert len({inputs(client, method) for client in KEYS}) == 1
    for method in ("uniform/minmax", "myqasr/cosine"):
        assert len({inputs(client, method) for client in KEYS}) == len(KEYS)


def test_the_run_folder(study):
    folder = study.result.folder
    names = {path.name for path in folder.path.iterdir()}
    assert names == {
        *("scenario.yaml", "versions.json", "layers.json", "timing.json"),
        *("ledger.sqlite", "results.parquet", "privacy.json", "models", ".lock"),
    }
    assert read_results(folder.results) == study.result.rows
    assert load_scenario(folder.scenario) == study.scenario


def test_the_ledger_lists_every_field_that_moved(study, rows, model):
    """Byte for byte: what each device was sent and what left it, in the three exchanges."""
    layers, tested = len(model.layers), 31
    with Ledger(study.result.folder.ledger) as ledger:
        releases = ledger.all_releases()
        assert ledger.finished() == set(KEYS)
    assert {r.client for r in releases} == set(KEYS)
    assert {r.epsilon for r in releases} == {None}
    for client in KEYS:
        own = {
            row.method: row.file_bytes
            for row in rows.values()
            if row.client == client and row.method != "fp32" and row.tuned_on in ("", client)
        }
        counts = ("file_bytes", "errors", "words", "char_errors", "chars", "low", "high")
        found = [r for r in releases if r.client == client]
        up = {(r.stage, r.field): r.bytes for r in found if r.direction == "up"}
        assert up == {
            ("sense", "client"): 3,
            ("sense", "budget_bytes"): 8,
            ("sense", "bit_depths"): 15 * 8,
            ("sense", "clips"): 8,
            ("sense", "sensitivity"): 8 * layers,
            ("personalize", "client"): 3,
            ("personalize", "file_bytes"): 8 * len(own),
            ("personalize", "blobs"): 0,  # the server rounds
            ("personalize", "ranges"): 8 * 2 * layers * len(own),
            ("evaluate", "client"): 3,
            ("evaluate", "clips"): 8,
            **{("evaluate", name): 8 * tested for name in counts},
            ("evaluate", "correct"): 0,
            # only where a scenario says study: true
            ("sense", "quantiles"): 0,
            ("evaluate", "clip_wrong"): 0,
            ("evaluate", "clip_of"): 0,
            # only where it says fleet
            ("sense", "workload"): 0,
            ("sense", "payload"): 0,
            ("sense", "depths"): 0,
            ("sense", "language"): 0,
            ("evaluate", "looped"): 0,
            ("evaluate", "looped_errors"): 0,
            ("evaluate", "looped_words"): 0,
            ("evaluate", "rare_errors"): 0,
            ("evaluate", "rare_words"): 0,
            ("evaluate", "workload"): 0,
        }
        down = {(r.stage, r.field): r.bytes for r in found if r.direction == "down"}
        assert down.pop(("sense", "measure")) == len("median")
        assert down.pop(("sense", "quantiles")) == 1
        assert down.pop(("evaluate", "clip_counts")) == 1
        assert down.pop(("sense", "round")) == 8
        assert down.pop(("sense", "low")) == down.pop(("sense", "high")) == 0
        assert down.pop(("sense", "workload")) + down.pop(("evaluate", "workload")) == 2
        assert down.pop(("personalize", "return_models")) == 1
        assert down.pop(("evaluate", "full_precision")) == 1
        assert down.pop(("evaluate", "metric")) == len("wer")
        assert down.pop(("evaluate", "text_normalizer")) == len("basic")
        assert down.pop(("evaluate", "rare_beyond")) == 8
        # a hash of 32 bytes and two depths of 8 for each layer, some names, and ranges of others
        sent = down.pop(("personalize", "candidates"))
        assert 0 < sent - 48 * layers * len(own) < 40 * len(own)
        assert down.pop(("evaluate", "candidates")) > 48 * layers * (tested - 1)
        assert down == {("personalize", f"model {name}"): size for name, size in own.items()}
        assert len(found) == len(up) + len(own) + 15  # nothing is written twice


def test_clips_are_what_the_files_hold(study, clients):
    for client in clients.values():
        for utterance in client.tuning + client.test:
            samples, rate = soundfile.read(utterance.source, dtype="float32")
            assert rate == 16_000
            np.testing.assert_array_equal(read_utterance(utterance), samples)
