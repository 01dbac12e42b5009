"""The privacy section of a scenario: every mistake is told, with its key and what to do."""

import pytest
from pydantic import ValidationError

from fedsim.errors import FedsimError
from fedsim.scenario import Scenario, load_scenario
from fedsim.scenario import privacy as privacy_module
from fedsim.scenario.privacy import PrivacySettings
from fedsim.study.clients import check_privacy

BASE = """\
name: a
model: {id: m}
corpus: {path: p, group_by: speaker}
clients: {budget_mb: 40}
methods: [fp32, myqasr]
privacy:
"""


@pytest.fixture
def refuse(tmp_path):
    """Load a scenario with these lines below `privacy:`; return the sentence that refuses it."""

    def load(text, base=BASE):
        path = tmp_path / "s.yaml"
        path.write_text(base + "".join(f"  {line}\n" for line in text.splitlines()))
        with pytest.raises(FedsimError) as found:
            load_scenario(path)
        return str(found.value).removeprefix(str(path))

    return load


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("release: rank", 7, "privacy.release: there is no release 'rank': did you mean 'ranks'?"),
        ("epsilon: 0", 7, "privacy.epsilon is 0: must be more than 0"),
        ("epsilon: -1", 7, "privacy.epsilon is -1: must be more than 0"),
        ("delta: 1.0", 7, "privacy.delta is 1.0: must be less than 1"),
        ("release: noisy\ndelta: 0", 8, "privacy.delta: gaussian noise needs a delta above 0"),
        ("bounds: [0.9, 0.1]", 7, "privacy.bounds: 0.9 to 0.1 is no range of quantiles"),
        ("bounds: [0.1, 1.5]", 7, "privacy.bounds: 0.1 to 1.5 is no range of quantiles"),
        ("mechanism: gauss", 7, "there is no mechanism 'gauss': did you mean 'gaussian'?"),
        ("noise: random", 7, "privacy.noise: there is no noise 'random'"),
        ("bits: 0", 7, "privacy.bits is 0: must be at least 1"),
        ("layers: [0, 0]", 7, "privacy.layers.1: 0 is listed twice"),
        ("layers: [-1]", 7, "privacy.layers: there is no layer -1: layers count from 0"),
        ("cohort: {size: 2}", 7, "privacy.cohort.size is 2: must be at least 3"),
        ("cohort: {size: 8, threshold: 4}", 7, "4 of 8 members: it must be 5 to 8"),
        ("cohort: {size: 8, threshold: 9}", 7, "9 of 8 members: it must be 5 to 8"),
        (
            "release: noisy\nbudget: {epsilon: 0.5}",
            8,
            "privacy.budget.epsilon: 0.5 is less than one release costs, 1: raise it",
        ),
        (
            "release: noisy\nbudget: {epsilon: 2, delta: 0}",
            8,
            "privacy.budget.delta: 0 is less than one release costs, 1e-06: raise it",
        ),
        ("release: noisy\nmechanism: gauss\ndelta: 0", 8, "there is no mechanism 'gauss'"),
        ("secret: 1", 7, "unknown key 'secret' in privacy"),
    ],
)
def test_numbers_and_names_that_cannot_be(refuse, text, line, said):
    sentence = refuse(text)
    assert sentence.startswith(f":{line}: ")
    assert said in sentence


@pytest.mark.parametrize(
    ("release", "methods", "place", "said"),
    [
        ("ranks", "[linear]", "methods.0", "linear needs values, and release 'ranks' gives"),
        ("plan", "[myqasr, reversed]", "methods.1", "release 'plan' gives one plan, and reversed"),
        (
            "noisy",
            "[{allocation: myqasr, tuned_on: [own, other]}]",
            "methods.0.tuned_on.1",
            "'other' makes activation ranges travel, which release 'noisy' does not cover",
        ),
    ],
)
def test_methods_that_need_more_than_is_released(refuse, release, methods, place, said):
    sentence = refuse(f"release: {release}", BASE.replace("[fp32, myqasr]", methods))
    assert f": {place}: {said}" in sentence


def test_blind_methods_need_nothing():
    for release in ("ranks", "plan", "noisy", "none", "cohort"):
        make(["fp32", "uniform", "shuffled", "myqasr"], release=release)


def test_a_matrix_is_checked_before_anything_runs(refuse):
    base = BASE.replace("privacy:\n", "matrix:\n")
    assert "privacy.release: there is no 'rank'" in refuse("privacy.release: [values, rank]", base)
    sentence = refuse("privacy.epsilon: [1, 0]", base)
    assert "privacy.epsilon=0: privacy.epsilon" in sentence
    assert "greater than 0" in sentence


def make(methods=("fp32",), corpus=None, **said) -> Scenario:
    return Scenario.model_validate(
        {
            "name": "toy",
            "model": {"id": "none"},
            "corpus": corpus or {"path": "none", "group_by": "speaker"},
            "clients": {"budget_mb": 1.0},
            "methods": list(methods),
            "privacy": said,
        }
    )


def test_a_mechanism_without_delta_spends_none():
    said = make(release="noisy", mechanism="laplace", budget={"epsilon": 2, "delta": 0})
    assert said.privacy.budget.delta == 0


def test_delta_against_the_number_of_clients():
    scenario = make(release="noisy", delta=0.01)
    check_privacy(scenario, [str(i) for i in range(99)])
    with pytest.raises(FedsimError, match=r"privacy.delta is 0.01 .* 100 clients: .* = 0.01, or"):
        check_privacy(scenario, [str(i) for i in range(100)])
    check_privacy(make(release="values", delta=0.01), [str(i) for i in range(100)])


def test_a_cohort_larger_than_the_fleet():
    check_privacy(make(release="cohort", cohort={"size": 5}), list("abcde"))
    with pytest.raises(FedsimError, match=r"privacy.cohort.size is 5 and there are 4 clients"):
        check_privacy(make(release="cohort", cohort={"size": 5}), list("abcd"))


def test_secure_noise_without_its_library(monkeypatch):
    monkeypatch.setattr(privacy_module, "find_spec", lambda name: None)
    with pytest.raises(FedsimError, match=r"privacy.noise: secure .* fedsim-speech\[privacy\]"):
        check_privacy(make(release="noisy", noise="secure"), ["a"])


def test_public_voices_take_no_part():
    corpus = {
        "kind": "voices",
        "group_by": "speaker",
        "population": {"speakers": 10, "first": 899_990},
    }
    check_privacy(make(corpus=corpus), ["a"])  # nobody needs bounds
    with pytest.raises(FedsimError, match=r"reaches speaker 900,000, .* public"):
        check_privacy(make(corpus=corpus, release="none"), ["a"])


def test_what_results_depend_on():
    """A matrix copies what differs only in settings that the release does not read."""
    assert PrivacySettings(epsilon=2.0, bits=7).relevant() == {"release": "values"}
    assert PrivacySettings(release="noisy", epsilon=2.0).relevant()["epsilon"] == 2.0
    assert "epsilon" not in PrivacySettings(release="quantized").relevant()
    for release in ("values", "ranks", "plan"):
        assert not PrivacySettings(release=release).needs_bounds
    with pytest.raises(ValidationError):
        PrivacySettings(release="")


def test_a_release_that_is_plugged_in_may_read_every_setting():
    ours = PrivacySettings(release="mine")
    assert ours.needs_bounds
    assert set(ours.relevant()) == set(PrivacySettings.model_fields)
    for other in ({"bits": 1}, {"epsilon": 2.0}, {"public_voices": 4}, {"cohort": {"size": 3}}):
        assert PrivacySettings(release="mine", **other).relevant() != ours.relevant()


def test_a_group_is_no_larger_than_its_sums_hold():
    """Of nearly twice the size there is one group: its codes must add up to less than 2^32."""
    from fedsim.privacy.secure_aggregation.codes import MAX_MEMBERS

    made = PrivacySettings(release="cohort", cohort={"size": 2048})
    assert 2 * made.cohort.size - 1 <= MAX_MEMBERS
    with pytest.raises(ValidationError):
        PrivacySettings(release="cohort", cohort={"size": 2049})
