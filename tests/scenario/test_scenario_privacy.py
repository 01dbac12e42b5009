"""The privacy section of a scenario: every mistake is reported, with its key and the remedy."""

import sys
from dataclasses import replace

import pytest
from entries import added
from pydantic import ValidationError

from fedsim.errors import FedsimError
from fedsim.privacy.releases import RELEASES
from fedsim.scenario import Scenario
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
def refuse_privacy(refuse):
    """Load a scenario with these lines below `privacy:`; return the one line that rejects it."""

    def lines(text, base=BASE):
        (line,) = refuse(base + "".join(f"  {line}\n" for line in text.splitlines()))
        return line.removeprefix("s.yaml")

    return lines


MISTAKES = [
    # Lines of the section, the line of the mistake, the key, and the value or the remedy.
    ("release: noisy\ndelta: 0", 8, "privacy.delta: ", "raise it, or use laplace"),
    ("bounds: [0.9, 0.1]", 7, "privacy.bounds: 0.9 to 0.1 ", "use one such as [0.05, 0.95]"),
    ("bounds: [0.1, 1.5]", 7, "privacy.bounds: 0.1 to 1.5 ", "use one such as [0.05, 0.95]"),
    ("layers: [0, 0]", 7, "privacy.layers.1: 0 is listed twice", "remove one"),
    ("layers: [-1]", 7, "privacy.layers: there is no layer -1", "count layers from 0"),
    ("cohort: {size: 8, threshold: 4}", 7, "privacy.cohort.threshold: 4 of 8", "use 5 to 8"),
    ("cohort: {size: 8, threshold: 9}", 7, "privacy.cohort.threshold: 9 of 8", "use 5 to 8"),
    (
        "release: noisy\nbudget: {epsilon: 0.5}",
        8,
        "privacy.budget.epsilon: the budget of 0.5 is below the 1",
        "raise the budget, or lower privacy.epsilon",
    ),
    (
        "release: noisy\nbudget: {epsilon: 2, delta: 0}",
        8,
        "privacy.budget.delta: the budget of 0 is below the 1e-06",
        "raise the budget, or lower privacy.delta",
    ),
    ("release: noisy\nmechanism: gauss\ndelta: 0", 8, "privacy.mechanism: ", "'gaussian'?"),
]


def test_a_mistake_has_its_place_and_remedy(refuse_privacy):
    """Numbers out of range and names that are misspelled: test_scenario_mistakes."""
    for text, place, key, words in MISTAKES:
        line = refuse_privacy(text)
        assert line.startswith(f":{place}: {key}"), line
        assert words in line, line


def test_methods_that_need_more_than_is_released(refuse_privacy):
    other = "[{allocation: myqasr, tuned_on: [own, other]}]"
    for release, methods, key, words in (
        ("ranks", "[linear]", "methods.0", "use myqasr or reversed, or another privacy.release"),
        ("ranks", "[{allocation: knapsack, losses: own}]", "methods.0", "gives only their order"),
        *(
            (kind, "[{allocation: knapsack, losses: own}]", "methods.0.losses", "a table of losses")
            for kind in ("noisy", "quantized", "none", "cohort")
        ),
        ("plan", "[myqasr, reversed]", "methods.1", "run them separately"),
        ("noisy", other, "methods.0.tuned_on.1", "use own, or privacy.release: values"),
    ):
        line = refuse_privacy(f"release: {release}", BASE.replace("[fp32, myqasr]", methods))
        assert f": {key}: " in line
        assert words in line, line


def test_methods_that_read_no_profile_fit_every_release():
    for release in ("ranks", "plan", "noisy", "none", "cohort"):
        make(["fp32", "uniform", "shuffled", "myqasr"], release=release)


def test_a_matrix_is_checked_before_anything_runs(refuse_privacy):
    base = BASE.replace("privacy:\n", "matrix:\n")
    for text, key, value in (
        ("privacy.release: [values, rank]", "privacy.release", "rank"),
        ("privacy.epsilon: [1, 0]", "privacy.epsilon", "0"),
    ):
        line = refuse_privacy(text, base)
        assert key in line
        assert value in line


def make(methods=("fp32",), corpus=None, **privacy) -> Scenario:
    return Scenario.model_validate(
        {
            "name": "toy",
            "model": {"id": "none"},
            "corpus": corpus or {"path": "none", "group_by": "speaker"},
            "clients": {"budget_mb": 1.0},
            "methods": list(methods),
            "privacy": privacy,
        }
    )


def test_a_mechanism_without_delta_spends_none():
    made = make(release="noisy", mechanism="laplace", budget={"epsilon": 2, "delta": 0})
    assert made.privacy.budget.delta == 0


def test_delta_against_the_number_of_clients():
    scenario = make(release="noisy", delta=0.01)
    check_privacy(scenario, [str(i) for i in range(99)])
    with pytest.raises(
        FedsimError, match=r"privacy.delta is 0.01 .* 100 clients.*below 1 / clients"
    ):
        check_privacy(scenario, [str(i) for i in range(100)])
    check_privacy(make(release="values", delta=0.01), [str(i) for i in range(100)])


def test_a_cohort_larger_than_the_fleet():
    check_privacy(make(release="cohort", cohort={"size": 5}), list("abcde"))
    with pytest.raises(FedsimError, match=r"privacy.cohort.size is 5 .* 4 clients"):
        check_privacy(make(release="cohort", cohort={"size": 5}), list("abcd"))


def test_secure_noise_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "opendp", None)
    with pytest.raises(FedsimError, match=r"privacy.noise: secure .* fedsim-speech\[privacy\]"):
        check_privacy(make(release="noisy", noise="secure"), ["a"])


def test_public_voices_take_no_part():
    corpus = {
        "kind": "voices",
        "group_by": "speaker",
        "population": {"speakers": 10, "first": 899_990},
    }
    check_privacy(make(corpus=corpus), ["a"])  # nobody needs bounds
    with pytest.raises(FedsimError, match=r"speaker 900,000.*lower first or speakers"):
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


def test_a_release_that_does_not_name_its_settings_may_read_them_all():
    with added(RELEASES, "mine", replace(RELEASES["values"], settings=None)):
        ours = PrivacySettings(release="mine")
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
