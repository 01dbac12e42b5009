"""Releases from the device to the plan: what is sent, how it is read, what it costs."""

import json

import numpy as np
import paper
import pytest
import toys
from fedsim_clients.release import HOME, SPENT

from fedsim.privacy.bounds import normalize
from fedsim.privacy.budget import UNLIMITED, spend, spent
from fedsim.privacy.release_params import ReleaseParams
from fedsim.privacy.releases import release
from fedsim.quant.allocation import allocate
from fedsim.quant.profile import profile_of
from fedsim.results.ledger import Ledger
from fedsim.runner.single import resume_run, run_scenario
from fedsim.scenario import Scenario
from fedsim.study.model import load_study_model
from fedsim.study.privacy_statement import read_statement

DEPTHS = (2, 3, 4, 6, 8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return toys.write_corpus(tmp_path_factory.mktemp("private") / "clips", each=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder, corpus):
    """Run the toys with a privacy section; return the result."""

    def run_(
        methods=("fp32", {"allocation": "myqasr", "calibration": ["minmax"]}),
        engine="inprocess",
        **privacy,
    ):
        scenario = Scenario.model_validate(
            {
                "name": "toy",
                "model": {"id": str(model_folder("ctc-group")), "batch_size": 4},
                "corpus": {
                    "path": str(corpus),
                    "group_by": "speaker",
                    "tuning_clips": 2,
                    "test_clips": 1,
                },
                "clients": {"budget_mb": 0.032, "bit_depths": list(DEPTHS)},
                "quantization": paper.QUANTIZATION,
                "methods": list(methods),
                "engine": {"kind": engine, "workers": 2 if engine == "ray" else None},
                "privacy": {"public_voices": 2, "bounds": [0.0, 1.0], **privacy},
            }
        )
        return run_scenario(scenario, tmp_path_factory.mktemp("run") / "out"), scenario

    return run_


def look(result):
    """Return of each client: payloads, sensitivities as kept, bits; and all releases."""
    with Ledger(result.folder.ledger) as ledger:
        payloads = {}
        for p in ledger.payloads():
            payloads.setdefault(p.client, []).append(p.payload)
        sensed = {s.client: s.sensitivity for s in ledger.sensed()}
        bits = {p.client: p.bits for p in ledger.plans() if p.method == "myqasr/minmax"}
        return payloads, sensed, bits, ledger.all_releases()


@pytest.fixture(scope="module")
def plain(run):
    """The run that releases values: what devices sensed, and their plans."""
    return look(run()[0])


def sizes_of(scenario):
    return load_study_model(scenario).sizes


def sent(releases, client="ann"):
    """The fields that a client sent when it was sensed, with bytes and epsilon."""
    return {
        r.field: (r.bytes, r.epsilon)
        for r in releases
        if (r.client, r.stage, r.direction) == (client, "sense", "up") and r.bytes
    }


PROFILE = {"client": (3, None), "budget_bytes": (8, None), "bit_depths": (40, None)}
PROFILE["clips"] = (8, None)


def test_values_are_as_before(plain):
    payloads, sensed, _, releases = plain
    layers = len(sensed["ann"])
    assert sent(releases) == PROFILE | {"sensitivity": (8 * layers, None)}
    assert np.frombuffer(payloads["ann"][0], "<f8").tolist() == list(sensed["ann"])


@pytest.mark.parametrize("kind", ["ranks", "plan"])
def test_order_and_plan_give_the_same_models_and_no_value(run, plain, kind):
    """Algorithm 1 reads only the order: the plans are those of the values, from a few bytes."""
    result, _ = run(release=kind)
    payloads, sensed, bits, releases = look(result)
    _, values, wanted, _ = plain
    assert bits == wanted
    layers = len(values["ann"])
    params = ReleaseParams(layers, depths=DEPTHS, plan=lambda v: wanted["ann"])
    rng = np.random.default_rng(0)
    assert payloads["ann"] == [release(kind, values["ann"], params, rng).payload]
    assert sent(releases) == PROFILE | {"payload": (len(payloads["ann"][0]), None)}
    assert set(sensed.values()) == {()}


def test_nothing_is_sent_and_the_plan_is_public(run):
    result, scenario = run(release="none")
    payloads, sensed, bits, releases = look(result)
    assert (payloads, set(sensed.values())) == ({}, {()})
    assert sent(releases) == PROFILE
    assert {r.bytes for r in releases if r.direction == "down" and r.field == "measure"} == {0}
    middle = read_statement(result.folder.privacy).bounds.middle
    budget = int(0.032 * 2**20)
    assert set(bits.values()) == {
        allocate("myqasr", profile_of(middle, "median"), sizes_of(scenario), budget)
    }


def test_quantized_values_lie_on_their_steps(run, plain):
    result, _ = run(release="quantized", bits=3)
    payloads, sensed, _, releases = look(result)
    bounds = read_statement(result.folder.privacy).bounds
    size = -(-3 * len(bounds.low) // 8)
    assert sent(releases) == PROFILE | {"payload": (size, None)}
    for client, values in sensed.items():
        assert len(payloads[client][0]) == size
        places = normalize(np.array(values), bounds) * 7
        assert places == pytest.approx(np.rint(places), abs=1e-6)
        true = normalize(np.array(plain[1][client]), bounds)
        assert np.abs(places / 7 - true).max() <= 1 / 14 + 1e-9
    down = {r.field: r.bytes for r in releases if r.client == "ann" and r.direction == "down"}
    assert down["low"] == down["high"] == 8 * len(bounds.low)


def test_noise_is_that_of_the_guarantee(run, plain):
    """What is released minus what was sensed has the deviation that the statement names."""
    result, _ = run(release="noisy", epsilon=2.0, delta=0.001)
    payloads, _, _, releases = look(result)
    made = read_statement(result.folder.privacy)
    assert sent(releases) == PROFILE | {"payload": (4 * len(made.bounds.low), 2.0)}
    true = {c: normalize(np.array(v), made.bounds) for c, v in plain[1].items()}
    noise = [np.frombuffer(payloads[c][0], "<f4") - true[c] for c in true]
    assert np.std(noise) == pytest.approx(made.guarantee.scale, rel=0.25)  # 95 draws
    assert len({n.tobytes() for n in noise}) == len(noise)
    assert made.guarantee.epsilon == 2.0
    assert "ε = 2 at δ = 0.001" in made.sentence


def test_secure_noise_is_another_each_time_and_is_kept(run, plain):
    pytest.importorskip("opendp")
    released = []
    for _ in range(2):
        result, _ = run(release="noisy", noise="secure", epsilon=2.0, delta=0.001)
        released.append(look(result)[0])
        assert "protects nobody" not in read_statement(result.folder.privacy).sentence
    assert all(released[0][client] != released[1][client] for client in toys.SPEAKERS)
    with Ledger(result.folder.ledger) as ledger:
        ledger.fail_client("ann", "evaluate", "it was cut off", "dropped")
    assert look(resume_run(result.folder.path))[0] == released[1]  # a second draw would reveal more


def test_rounds_are_averaged_and_counted(run):
    result, _ = run(release="noisy", epsilon=1.0, delta=0.001, rounds=3)
    payloads, sensed, _, releases = look(result)
    noisy = [np.frombuffer(p, "<f4") for p in payloads["ann"]]
    assert len(noisy) == 3
    assert len({n.tobytes() for n in noisy}) == 3
    up = [r.epsilon for r in releases if (r.client, r.field) == ("ann", "payload")]
    assert up == [1.0] * 3
    assert spent(result.folder.path / "privacy.sqlite", "ann") == (3.0, pytest.approx(0.003))
    made = read_statement(result.folder.privacy)
    # The best guess from the mean of three, by hand: noise of a third of the variance.
    variance = made.guarantee.scale**2 / 3
    trust = (1 / 12) / (1 / 12 + variance)
    guess = 0.5 + trust * (np.mean(noisy, axis=0) - 0.5)
    assert normalize(np.array(sensed["ann"]), made.bounds) == pytest.approx(np.clip(guess, 0, 1))
    assert made.guarantee.cumulative_epsilon > 1.0
    assert "over 3 of them" in made.sentence


def test_a_device_that_has_spent_its_budget_declines(run):
    """Two of three rounds are paid for; the model is made from these, and the third is declined."""
    result, _ = run(
        release="noisy", epsilon=1.0, delta=1e-3, rounds=3, budget={"epsilon": 2.5, "delta": 0.01}
    )
    payloads, *_ = look(result)
    assert {len(p) for p in payloads.values()} == {2}
    assert result.failures == []
    with Ledger(result.folder.ledger) as ledger:
        events = [(e.client, e.event) for e in ledger.events()]
    assert events == [(client, "declined") for client in toys.SPEAKERS]


def test_what_was_spent_stays_spent_and_is_not_spent_twice(run):
    """A run begun again from its ledger asks the same again, and gets the same for nothing."""
    result, _ = run(
        release="noisy", epsilon=1.0, delta=1e-3, budget={"epsilon": 1.0, "delta": 0.01}
    )
    before, file = look(result)[0], result.folder.path / "privacy.sqlite"
    with Ledger(result.folder.ledger) as ledger:
        ledger.fail_client("ann", "evaluate", "it was cut off", "dropped")
    again = resume_run(result.folder.path)
    assert again.failures == []
    assert look(again)[0] == before
    assert spent(file, "ann")[0] == 1.0


def test_one_that_never_may_declines_and_is_counted(run, tmp_path, monkeypatch):
    """A budget that another run has spent: the device's own file says so."""
    monkeypatch.setenv(HOME, str(tmp_path))
    for client in toys.SPEAKERS:
        assert spend(tmp_path / SPENT, client, "another run", 1.0, 0.001, UNLIMITED)
    result, _ = run(
        release="noisy", epsilon=1.0, delta=1e-3, budget={"epsilon": 1.0, "delta": 0.01}
    )
    assert [(f.client, f.stage, f.outcome) for f in result.failures] == [
        (client, "sense", "declined") for client in toys.SPEAKERS
    ]
    assert "has spent ε = 1 of 1" in result.failures[0].reason
    assert result.rows == []


def test_the_statement_of_every_release(run):
    for kind, words in {
        "values": "one number per layer as it is: there is no noise",
        "ranks": "the order of its layers and no value",
        "none": "Nothing of a user's audio leaves the device",
    }.items():
        result, _ = run(methods=("fp32",), release=kind)
        made = json.loads(result.folder.privacy.read_text())
        assert made["guarantee"] is None
        assert words in made["sentence"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "privacy",
    [
        {"release": "cohort", "cohort": {"size": 4}},
        {"release": "noisy", "delta": 1e-3, "rounds": 2, "budget": {"epsilon": 3, "delta": 0.1}},
        {"release": "plan"},
    ],
)
def test_every_engine_gives_the_same_table(run, privacy):
    tables = [run(engine=kind, **privacy)[0].folder.results for kind in ("inprocess", "ray")]
    assert tables[0].read_bytes() == tables[1].read_bytes()
