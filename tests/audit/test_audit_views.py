"""What an audit attacks: the server's view to the byte, and the speakers that it senses itself."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import paper
import pytest
from entries import added

from fedsim.audit.attack import attack
from fedsim.audit.claim import measure_claim
from fedsim.audit.views import View, released_alone, released_in_groups, vectors
from fedsim.audit.voices import Voices, open_voices
from fedsim.errors import FedsimError
from fedsim.privacy.bounds import Bounds, normalize
from fedsim.privacy.noise import MECHANISMS
from fedsim.privacy.release_params import ReleaseParams
from fedsim.privacy.releases import release
from fedsim.quant.allocation import Sizes
from fedsim.scenario import Scenario
from fedsim.speech.clips import ClientData, Utterance
from fedsim.study.release_params import release_params

LAYERS = 6
BOUNDS = Bounds(np.full(LAYERS, 0.1), np.full(LAYERS, 10.0))
RNG = np.random.default_rng(1)


def scenario(methods=("fp32", "myqasr"), corpus=None, model="none", **privacy) -> Scenario:
    return Scenario.model_validate(
        {
            "name": "toy",
            "model": {"id": model},
            "corpus": corpus or {"path": "none", "group_by": "speaker"},
            "clients": {"budget_mb": 1.0, "bit_depths": [2, 4, 8]},
            "quantization": paper.QUANTIZATION,
            "methods": list(methods),
            "privacy": privacy,
        }
    )


def test_vectors_hold_all_that_was_released():
    values = RNG.uniform(0.2, 5, (3, LAYERS))
    seen = {}
    params = ReleaseParams(
        LAYERS, bounds=BOUNDS, bits=3, depths=(2, 4, 8), plan=lambda v: (2, 4, 8, 2, 4, 8)
    )
    for kind in ("values", "quantized", "noisy", "ranks", "plan"):
        payloads = [[release(kind, v, params, np.random.default_rng(0)).payload] for v in values]
        seen[kind] = vectors(kind, payloads, params)
    assert seen["values"] == pytest.approx(np.log(values))
    assert seen["quantized"] == pytest.approx(
        np.rint(7 * np.array([normalize(v, BOUNDS) for v in values]))
    )
    assert (np.argsort(-seen["ranks"], axis=1) == np.argsort(-values, axis=1)).all()
    assert seen["plan"].tolist() == [[2, 4, 8, 2, 4, 8]] * 3
    noise = seen["noisy"] - np.array([normalize(v, BOUNDS) for v in values])
    assert noise == pytest.approx(np.tile(noise[0], (3, 1)), abs=1e-5)  # of one seed, unclipped
    assert vectors("none", [(), ()], params).shape == (2, 1)


def test_noisy_rounds_are_averaged():
    noisy = scenario(release="noisy", epsilon=1.0, delta=1e-3, rounds=4)
    params = release_params(noisy, LAYERS, BOUNDS)
    payloads = released_alone(noisy, params, "ann", np.full(LAYERS, 1.0), "test")
    rows = np.array([np.frombuffer(p, "<f4") for p in payloads])
    assert len({row.tobytes() for row in rows}) == 4
    assert vectors("noisy", [payloads], params)[0] == pytest.approx(rows.mean(axis=0), rel=1e-6)
    again = released_alone(noisy, params, "ann", np.full(LAYERS, 1.0), "another purpose")
    assert again[0] != payloads[0]


def test_a_group_is_seen_by_its_mean_alone():
    values = {name: RNG.uniform(0.2, 5, LAYERS) for name in "abcdef"}
    seen = released_in_groups([["a", "b", "c"], ["d", "e", "f"]], values, BOUNDS)
    assert seen["a"] == seen["b"] == seen["c"] != seen["d"]
    mean = np.exp(np.mean([np.log(values[c]) for c in "abc"], axis=0))
    assert np.frombuffer(seen["a"][0], "<f8") == pytest.approx(mean, rel=1e-4)


@dataclass
class SensedVoices(Voices):
    """Speakers whose sensitivities are given: those of two sessions, and of worlds."""

    first_values: dict = field(default_factory=dict)
    second_values: dict = field(default_factory=dict)
    world_values: dict = field(default_factory=dict)

    def first(self, keys):
        return {key: self.first_values[key] for key in keys}

    def second(self, keys):
        return {key: self.second_values[key] for key in keys}

    def worlds(self, key):
        return self.world_values[key]


def view_of(study, released, genders, **values):
    """A view of speakers whose sensitivities are given, if any."""
    clients = {
        key: ClientData(key, (Utterance(f"{key}/0", key, gender=gender),), ())
        for key, gender in genders.items()
    }
    model = SimpleNamespace(layers=range(LAYERS))
    models = SimpleNamespace(first=SimpleNamespace(model=model))
    voices = SensedVoices(study, models, clients, lambda: clients, **values)
    sizes = Sizes((2, 4, 8), np.ones((LAYERS, 3), int), 0)
    return View(study, voices, BOUNDS, lambda _: sizes, tuple(sorted(clients)), released)


def test_a_planted_leak_is_found_and_what_cannot_be_measured_is_named():
    genders = {f"c{i:02d}": ("female", "male")[i % 2] for i in range(40)}
    leak = {
        key: [(np.exp(RNG.normal(size=LAYERS) + 4 * (g == "male"))).astype("<f8").tobytes()]
        for key, g in genders.items()
    }
    found = {(f.attribute, f.figure): f for f in attack(view_of(scenario(), leak, genders), 5)}
    assert found["gender", "AUC"].value > 0.95
    assert found["gender", "AUC"].verdict == "gives away"
    assert found["gender", "AUC, shuffled labels"].verdict == "not distinguishable"
    assert found["the speaker", "rank-1"].value is None
    assert "no second session" in found["a tuning clip", "AUC"].note
    assert not any(name in ("accent", "language") for name, _ in found)  # nobody knows them


def test_too_few_of_a_gender():
    genders = {f"c{i}": ("female", "male")[i < 3] for i in range(12)}
    released = {key: [np.ones(LAYERS).astype("<f8").tobytes()] for key in genders}
    finding = attack(view_of(scenario(), released, genders), 5)[0]
    assert finding.value is None
    assert "two of 2 values of gender have 5 speakers; add speakers" in finding.note


def sensed_in_groups(values, sizes, cohort):
    """A view of voices that sense these values; those who finished were in groups of these sizes.

    A device's values are drawn anew in each session.
    """
    corpus = {"kind": "voices", "group_by": "speaker", "population": {"speakers": len(values)}}
    study = scenario(corpus=corpus, release="cohort", cohort={"size": cohort})
    names = iter(values)
    groups = [[next(names) for _ in range(size)] for size in sizes]
    finished = tuple(sorted(name for group in groups for name in group))
    session, worlds = np.random.default_rng(5), np.arange(24)[:, None] + np.arange(6) & 1 == 0
    view = view_of(
        study,
        released_in_groups(groups, values, BOUNDS),
        dict.fromkeys(values, "female"),
        first_values=values,
        second_values={name: session.uniform(0.2, 5, LAYERS) for name in values},
        world_values={name: (session.uniform(0.2, 5, (24, LAYERS)), worlds) for name in values},
    )
    return replace(view, keys=finished), groups


def people(n):
    order = np.random.default_rng(3).permutation(n)
    return {f"c{i:03d}": RNG.uniform(0.2, 5, LAYERS) for i in order}


def test_groups_are_those_of_the_run_and_judged_as_groups():
    """Sessions have nothing in common: chance is within the interval, of groups, not of members."""
    view, groups = sensed_in_groups(people(100), [4] * 24, 4)
    assert {frozenset(group) for group in view.groups} == {frozenset(group) for group in groups}
    found = {(f.attribute, f.figure): f for f in attack(view, 2)}
    for figure in ("rank-1", "AUC", "EER"):
        assert found["the speaker", figure].verdict == "not distinguishable"
        assert found["the speaker", figure].n == 24
    assert found["a tuning clip", "AUC"].value is not None


def test_a_group_that_is_too_small_for_a_mean_is_refused():
    for sizes in ([1, 2], [2, 2, 2]):
        view, _ = sensed_in_groups(people(8), sizes, 4)
        found = attack(view, 2)
        assert [(f.attack, f.value) for f in found] == [
            ("re-identification", None),
            ("membership", None),
        ]
        for finding in found:
            assert f"{sum(sizes)} clients finished, and no group of 4 has the 3 of" in finding.note
            assert "run more clients, or lower privacy.cohort.size" in finding.note


def test_a_group_that_lost_members_has_a_smaller_mean():
    view, groups = sensed_in_groups(people(12), [3, 4, 1], 4)
    assert view.repeatable() == tuple(sorted(groups[0] + groups[1]))
    found = {f.attack: f for f in attack(view, 2)}
    assert "7 speakers are in 2 groups" in found["re-identification"].note
    assert "of 2 clients" in found["membership"].note


def test_without_a_run_groups_are_drawn_from_all_clients():
    values = people(12)
    view, _ = sensed_in_groups(values, [4, 4], 4)
    view = replace(view, released=None)
    assert sorted(key for group in view.groups for key in group) == sorted(values)
    released = view.session(view.voices.first, "session 1")
    group = next(group for group in view.groups if view.keys[0] in group)
    mean = np.exp(np.mean([np.log(values[key]) for key in group], axis=0))
    assert np.frombuffer(released[view.keys[0]][0], "<f8") == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
@pytest.mark.parametrize("epsilon", [0.5, 4.0])
def test_noise_is_as_strong_as_claimed(mechanism, epsilon):
    noisy = scenario(release="noisy", mechanism=mechanism, epsilon=epsilon, delta=1e-5)
    claim = measure_claim(noisy, BOUNDS, trials=1_000)
    assert not claim.is_refuted
    assert claim.claimed == pytest.approx(epsilon if mechanism == "gaussian" else epsilon / LAYERS)
    assert "nothing against the claim" in claim.sentence


@pytest.mark.parametrize(("mechanism", "part"), [("gaussian", 0.5), ("laplace", 0.2)])
def test_too_little_noise_is_refuted(mechanism, part):
    """A mechanism that adds a part of the noise that its accountant asks for."""
    sound = MECHANISMS[mechanism]
    weak = replace(sound, seeded=lambda rng, scale, n: sound.seeded(rng, part * scale, n))
    with added(MECHANISMS, "weak", weak):
        noisy = scenario(release="noisy", mechanism="weak", epsilon=4.0, delta=1e-5)
        claim = measure_claim(noisy, BOUNDS, trials=2_000)
    assert claim.is_refuted
    assert "is refuted" in claim.sentence


def test_a_layer_that_is_not_there():
    noisy = scenario(release="noisy", mechanism="laplace", layers=[LAYERS])
    with pytest.raises(
        FedsimError, match=rf"no layer {LAYERS}; name layers from 0 to {LAYERS - 1}"
    ):
        measure_claim(noisy, BOUNDS, trials=10)


def test_some_layers_only():
    noisy = scenario(release="noisy", epsilon=8.0, delta=1e-5, layers=[4, 1])
    claim = measure_claim(noisy, BOUNDS, trials=2_000)
    assert 4.0 < claim.at_least <= 8.0


@pytest.fixture(scope="module")
def voices(model_folder):
    corpus = {
        "kind": "voices",
        "group_by": "speaker",
        "population": {"speakers": 2},
        "tuning_clips": 3,
        "test_clips": 1,
    }
    return open_voices(scenario(corpus=corpus, model=str(model_folder("ctc-group"))))


def test_a_second_session_says_other_things(voices):
    for key, client in voices.clients.items():
        other = voices.other_clips(key)
        assert len(other) == len(client.tuning) == 3
        assert {u.source.speaker for u in other} == {u.source.speaker for u in client.tuning}
        assert not {u.source.text for u in other} & {u.source.text for u in client.tuning}


@pytest.mark.slow
def test_speakers_without_more_to_say_are_left_out_of_what_needs_it(tmp_path, model_folder):
    """Their sentences are enough for a run, and not for a second session: the rest is attacked."""
    (tmp_path / "list.txt").write_text("one\ntwo\nthree four\nfive\nsix\n")
    corpus = {
        "kind": "voices",
        "group_by": "speaker",
        "population": {"speakers": 20, "sentences": str(tmp_path / "list.txt")},
        "tuning_clips": 2,
        "test_clips": 1,
    }
    study = scenario(corpus=corpus, model=str(model_folder("ctc-group")))
    opened = open_voices(study)
    keys = tuple(opened.clients)
    released = {key: [RNG.uniform(1, 2, opened.layers).tobytes()] for key in keys}
    sizes = Sizes((2, 4, 8), np.ones((opened.layers, 3), int), 0)
    found = {
        f.attack: f for f in attack(View(study, opened, None, lambda _: sizes, keys, released), 2)
    }
    assert found["attribute"].value is not None
    for name in ("re-identification", "membership"):
        assert found[name].value is None
        assert "list.txt" in found[name].note


def test_worlds_come_in_pairs_that_share_no_clip(voices):
    key = next(iter(voices.clients))
    values, chosen = voices.worlds(key)
    assert chosen.shape == (24, 6)
    assert (chosen[::2] ^ chosen[1::2]).all()
    assert set(chosen.sum(axis=0)) == {12}
    assert values.shape == (24, voices.layers)
    whole = chosen[:, :3].all(axis=1)  # worlds that are the first session
    for row in values[whole]:
        assert row == pytest.approx(voices.first([key])[key])
    assert voices.worlds(key)[0] is values  # sensed once
