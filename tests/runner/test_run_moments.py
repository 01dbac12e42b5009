"""Weights rounded on public clips or on a device: the same everywhere, and nothing more leaves."""

from __future__ import annotations

import io
import json

import pytest
import toys
from fedsim_clients.saving import model_name
from own_engine import PassingGrid
from rich.console import Console

from fedsim import load_personalized, personalize
from fedsim.engine import EngineSettings, kept_running
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.results.ledger import Ledger
from fedsim.runner.show import print_run
from fedsim.runner.single import resume_run, run_scenario
from fedsim.scenario import load_scenario
from fedsim.speech.clips import read_utterance
from fedsim.speech.corpus import open_clients
from fedsim.speech.scoring import count_errors
from fedsim.study.model import load_study_model
from fedsim.study.public_model import public_clips

WHOSE = ("public", "own", "blend")
BUDGET_MB = 0.0334
COUNT = 8
"""Public clips."""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache folder of these tests: what is known of the public clips is computed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Clips of two clients, and those of two people who are nobody's users."""
    home = tmp_path_factory.mktemp("moments")
    toys.write_corpus(home / "clips", ("ann", "bob"))
    toys.write_corpus(home / "public", ("xan", "yve", "zoe"))
    return home


@pytest.fixture
def chosen(corpora, model_folder, tmp_path):
    """f(methods, overrides) -> a scenario of two clients with eight public clips."""

    def chosen_(*methods, overrides=(), tuning=3, **quantization):
        corpus = {"group_by": "speaker", "test_clips": 1}
        public = {**corpus, "path": str(corpora / "public"), "tuning_clips": 3}
        file = toys.write_scenario(
            tmp_path / "toy.yaml",
            model={"id": str(model_folder("ctc-group")), "batch_size": 4},
            corpus={**corpus, "path": str(corpora / "clips"), "tuning_clips": tuning},
            clients={"budget_mb": BUDGET_MB},
            quantization={
                "rounding": "compensated",
                "moments": "public",
                "public_clips": public,
                "public_count": COUNT,
                **quantization,
            },
            methods=list(methods),
        )
        return load_scenario(file, list(overrides))

    return chosen_


def myqasr(*moments, **more):
    return {"allocation": "myqasr", "calibration": "minmax", "moments": list(moments), **more}


def contents(result):
    """The table, and what travelled, of a run."""
    with Ledger(result.folder.ledger) as ledger:
        releases = sorted(map(repr, ledger.all_releases()))
    return result.folder.results.read_bytes(), releases


def test_personalize_and_a_run_round_alike(chosen, speech, tmp_path):
    """For public clips, the user's own and a blend of both: the same file, byte for byte."""
    scenario = chosen(myqasr(*WHOSE), overrides=["save_models=true"], own_weight=0.25)
    result = run_scenario(scenario, tmp_path / "run")
    assert result.failures == []
    known = [one.clip for one in public_clips(scenario).clips]
    assert len(known) == COUNT
    written = set()
    for key, client in open_clients(scenario.corpus, scenario.clients, scenario.seed).items():
        for moments in WHOSE:
            model = personalize(
                speech("ctc-group"),
                [read_utterance(utterance) for utterance in client.tuning],
                budget_mb=BUDGET_MB,
                allocation="myqasr",
                calibration="minmax",
                weights="per_channel",
                zero_points=False,
                moments=moments,
                own_weight=0.25,
                public_clips=known,
                language=client.language,
            )
            model.save(tmp_path / "personal.safetensors")
            label = "myqasr/minmax" + ("" if moments == "public" else f"/{moments}")
            file = result.folder.models / model_name(key, label)
            assert file.read_bytes() == (tmp_path / "personal.safetensors").read_bytes(), label
            assert load_personalized(file).language == client.language
            written.add(file.read_bytes())
    assert len(written) == 2 * len(WHOSE)


def test_rows_say_how_weights_were_rounded(chosen, tmp_path):
    methods = ["fp32", myqasr(*WHOSE, rounding=["compensated", "nearest"])]
    result = run_scenario(chosen(*methods), tmp_path / "run")
    found = {row.method: (row.rounding, row.moments) for row in result.rows}
    assert found == {
        "fp32": ("-", "-"),
        "myqasr/minmax": ("compensated", "public"),
        "myqasr/minmax/own": ("compensated", "own"),
        "myqasr/minmax/blend": ("compensated", "blend"),
        "myqasr/minmax/nearest": ("nearest", "-"),
    }


def test_layers_whose_inputs_were_too_few_are_named(chosen, tmp_path):
    scenario = chosen({"allocation": "uniform"})
    result = run_scenario(scenario, tmp_path / "run")

    def printed() -> str:
        console = Console(file=io.StringIO(), width=300)
        print_run(scenario, result, console)
        return console.file.getvalue()

    assert "without compensation" not in printed()
    layers = json.loads(result.folder.layers.read_text())
    assert all(layer["moments"] for layer in layers)
    for layer in layers[1:3]:
        layer["moments"] = False
    result.folder.layers.write_text(json.dumps(layers))
    first, second = (layer["name"] for layer in layers[1:3])
    assert (
        "2 layers rounded without compensation, since the public clips gave too few inputs:"
        f" {first}, {second}."
    ) in printed()


def test_what_a_device_that_rounds_downloads(chosen, tmp_path):
    """The full-precision model, and for a blend the public clips, once; no packed layer."""
    for number, methods in enumerate(("own", ["own", "blend"], ["public", "own", "blend"])):
        names = [methods] if isinstance(methods, str) else methods
        scenario = chosen(myqasr(*names))
        result = run_scenario(scenario, tmp_path / str(number))
        size = load_study_model(scenario).switch.full_bytes()
        expected = {"full-precision model": size}
        if "blend" in names:
            expected["public clips"] = len(public_clips(scenario).to_bytes())
        with Ledger(result.folder.ledger) as ledger:
            down = [r for r in ledger.all_releases() if r.direction == "down"]
        for client in ("ann", "bob"):
            large = [
                (r.field, r.bytes)
                for r in down
                if (r.client, r.stage) == (client, "personalize")
                and r.field not in ("candidates", "layers", "return_models")
            ]
            packed = {field: n for field, n in large if field.startswith("model ")}
            assert set(packed) == ({"model myqasr/minmax"} if "public" in names else set())
            assert sorted((f, n) for f, n in large if f not in packed) == sorted(expected.items())


class Watching(PassingGrid):
    """Keeps every answer, with the bytes of its fields."""

    def __init__(self, grid, found):
        super().__init__(grid)
        self.found = found

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        self.found += [dict(reply.content["message"]) for reply in replies]
        return replies


@pytest.mark.parametrize("moments", ["own", "blend"])
def test_a_receipt_holds_sizes_alone(chosen, engine, tmp_path, moments):
    """However many clips were rounded on: neither moments nor weights leave the device."""
    receipts = []
    for tuning in (1, 4):
        found: list[dict] = []
        engine.wrap = lambda grid, found=found: Watching(grid, found)
        scenario = chosen(myqasr(moments), overrides=["engine.kind=own"], tuning=tuning)
        result = run_scenario(scenario, tmp_path / str(tuning))
        assert result.failures == []
        answers = [fields for fields in found if "blobs" in fields]
        assert len(answers) == 2
        for fields in answers:
            assert set(fields) == {"protocol", "client", "file_bytes", "ranges", "blobs"}
            (size,) = fields["file_bytes"]
            assert 0 < size <= BUDGET_MB * 2**20
            assert not fields["ranges"]
            assert not fields["blobs"]
        with Ledger(result.folder.ledger) as ledger:
            sent = [r for r in ledger.all_releases() if r.direction == "up"]
        receipts.append(sorted((r.client, r.stage, r.field, r.bytes) for r in sent))
    assert receipts[0] == receipts[1]


def test_models_of_another_that_its_device_rounded(chosen, tmp_path):
    """The names of their layers travel where others test them, and these are tested as they are:
    bob's model on his own clips is the one that ann is sent."""
    scenario = chosen(myqasr("own", tuned_on=["own", "other"]), overrides=["save_models=true"])
    result = run_scenario(scenario, tmp_path / "run")
    assert result.failures == []
    found = {(row.client, row.tuned_on): row for row in result.rows}
    assert set(found) == {(a, b) for a in ("ann", "bob") for b in ("ann", "bob")}
    layers = len(load_study_model(scenario).model.layers)
    with Ledger(result.folder.ledger) as ledger:
        names = {(r.client, r.field): r.bytes for r in ledger.all_releases() if r.stage != "sense"}
    assert names["ann", "blobs"] == names["bob", "blobs"] == m.HASH_BYTES * layers
    clients = open_clients(scenario.corpus, scenario.clients, scenario.seed)
    for client, source in (("ann", "bob"), ("bob", "ann")):
        file = result.folder.models / model_name(source, "myqasr/minmax/own")
        test = clients[client].test
        heard = load_personalized(file).transcribe([read_utterance(u) for u in test])
        counted = count_errors([u.text for u in test], heard)
        row = found[client, source]
        assert (row.errors, row.words) == (counted.errors, counted.words)


KNAPSACK = {"allocation": "knapsack", "calibration": "minmax", "rounding": "nearest"}


def test_a_table_of_a_devices_own_clips(chosen, engine, tmp_path):
    """With the release of values the server gets the table; with that of plans, the plan alone."""
    seen = {}
    for release in ("values", "plan"):
        summaries: list[m.Summary] = []

        def look(message, context, call_next, summaries=summaries):
            reply = call_next(message, context)
            if message.metadata.message_type == m.SENSE:
                summaries.append(codec.from_record(m.Summary, reply.content, "a client"))
            return reply

        engine.mods = [look]
        overrides = ["engine.kind=own", f"privacy.release={release}", "clients.bit_depths=[4, 8]"]
        scenario = chosen({**KNAPSACK, "losses": "own"}, overrides=overrides)
        result = run_scenario(scenario, tmp_path / release)
        assert result.failures == []
        layers = len(load_study_model(scenario).model.layers)
        for summary in summaries:
            if release == "values":
                assert summary.depths == (4, 8)
                assert len(summary.sensitivity) == 2 * layers
            else:
                assert (summary.depths, summary.sensitivity) == ((), ())
                assert 0 < len(summary.payload) <= layers
        seen[release] = [(row.client, row.plan_sha256) for row in result.rows]
    assert seen["values"] == seen["plan"]


def cut_off(chosen, engine, tmp_path, moments, places):
    """Compare whole runs with those whose power is cut after some messages."""
    from test_run_resume import CountingGrid, PowerCutError

    method = myqasr(moments, tuned_on=["own", "other"])
    scenario = chosen("fp32", method, overrides=["engine.kind=own"])
    grids = []

    def run(place, limit=10**6, resume=False):
        engine.wrap = lambda grid: grids.append(CountingGrid(grid, limit)) or grids[-1]
        return resume_run(place) if resume else run_scenario(scenario, place)

    whole = run(tmp_path / "whole")
    assert whole.failures == []
    messages = grids[-1].passed
    for limit in [round(messages * place) for place in places]:
        place = tmp_path / str(limit)
        with pytest.raises(PowerCutError):
            run(place, limit)
        resumed = run(place, resume=True)
        assert resumed.failures == []
        table, releases = contents(resumed)
        expected, once = contents(whole)
        assert table == expected
        # The layers are gone with the bank, so a device may have to round them once more.
        assert set(releases) == set(once)


@pytest.mark.parametrize("moments", ["own", "blend"])
def test_a_run_that_is_cut_off_and_resumed(chosen, engine, tmp_path, moments):
    cut_off(chosen, engine, tmp_path, moments, [0.55, 0.8])


@pytest.mark.slow
@pytest.mark.parametrize("moments", ["own", "blend"])
def test_both_engines_agree(chosen, tmp_path, moments):
    pytest.importorskip("ray")
    method = myqasr(moments, tuned_on=["own", "other"])
    made = set()
    with kept_running("ray", 2, EngineSettings(workers=2)):
        for kind in ("inprocess", "ray"):
            overrides = [f"engine.kind={kind}", "engine.workers=2"]
            result = run_scenario(chosen("fp32", method, overrides=overrides), tmp_path / kind)
            assert result.failures == []
            made.add(contents(result)[0])
    assert len(made) == 1
