"""Re-identification of planted speakers, of noise, and of speakers hidden behind their sessions."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from fedsim.errors import FedsimError
from fedsim.privacy.attacks.reidentification import reidentify


def attack(first, second, seed=0, names=None, resamples=300, clusters=None):
    names = [f"s{i:03}" for i in range(len(first))] if names is None else names
    found = reidentify(
        first,
        second,
        np.asarray(names),
        np.random.default_rng(seed),
        release="medians",
        clusters=clusters,
        resamples=resamples,
    )
    return {finding.figure: finding for finding in found}


def sessions(speakers, features, noise, seed=0):
    """Two sessions of speakers who differ by 1, with noise of this deviation."""
    rng = np.random.default_rng(seed)
    who = rng.normal(size=(speakers, features))
    return tuple(who + noise * rng.normal(size=who.shape) for _ in range(2))


def test_planted_speakers_are_found():
    found = attack(*sessions(60, 20, 0.1))
    assert found["rank-1"].value > 0.95
    assert found["AUC"].value > 0.99
    assert found["EER"].value < 0.02
    assert all(f.verdict == "gives away" for f in found.values())
    assert found["rank-1"].chance == 1 / 30


@pytest.mark.slow
def test_noise_is_found_as_often_as_by_guessing():
    rng = np.random.default_rng(1)
    rounds = [attack(*rng.normal(size=(2, 40, 10)), seed=seed, resamples=100) for seed in range(40)]
    hits = np.mean([found["rank-1"].value for found in rounds])
    assert hits == pytest.approx(1 / 20, abs=3 * np.sqrt(0.05 * 0.95 / (8 * 40)))
    for figure in ("rank-1", "AUC", "EER"):
        covered = [found[figure].verdict == "not distinguishable" for found in rounds]
        assert np.mean(covered) > 0.9, figure


def test_what_sessions_do_is_learned_from_other_speakers():
    """A session shakes three directions by ten times what speakers differ; the rest tells them."""
    rng = np.random.default_rng(2)
    first, second = sessions(80, 12, 0.1, seed=3)
    shaken = rng.normal(size=(3, 12))
    first, second = (part + 10 * rng.normal(size=(80, 3)) @ shaken for part in (first, second))
    plain = cdist(second - second.mean(axis=0), first - first.mean(axis=0)).argmin(axis=1)
    assert np.mean(plain == np.arange(80)) < 0.3
    found = attack(first, second + 5)
    assert found["rank-1"].value > 0.9
    assert "standardised" not in found["rank-1"].note


def test_the_order_of_speakers_does_not_matter():
    first, second = sessions(30, 5, 0.7)
    names = np.array([f"s{i:03}" for i in range(30)])
    order = np.random.default_rng(4).permutation(30)
    once = attack(first, second, names=names)
    assert once == attack(first[order], second[order], names=names[order])
    assert once != attack(first, second, names=names, seed=1)


def test_speakers_who_are_equally_near_share_the_hit():
    """A release that is the gender only: AUC by hand, and a hit for one in those of a gender."""
    gender = np.repeat(np.eye(2), 30, axis=0)
    found = attack(gender, gender)
    assert found["rank-1"].value == pytest.approx(2 / 30, abs=0.01)
    assert found["AUC"].value == pytest.approx(0.75, abs=0.02)


def test_equal_sessions_are_found_without_fail():
    values = np.arange(40.0)[:, None]
    found = attack(values, values)
    assert (found["rank-1"].value, found["AUC"].value, found["EER"].value) == (1, 1, 0)
    assert found["rank-1"].low < 0.95  # forty of forty are no proof of all


def test_a_release_that_carries_nothing():
    found = attack(np.ones((20, 3)), np.ones((20, 3)))
    assert {name: f.value for name, f in found.items()} == {"rank-1": 0.1, "AUC": 0.5, "EER": 0.5}
    assert "all releases are the same" in found["AUC"].note
    assert all(f.verdict == "not distinguishable" for f in found.values())


def in_groups(first, second, size, seed=0):
    """Speakers who send the mean of their group, in no order, and the group of each."""
    group = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(first)), size))
    return first[group], second[group], group


def test_groups_of_noise_are_found_as_often_as_by_guessing():
    """Were a group learned from and judged, the AUC would be 0.86, and its interval far from it."""
    rng = np.random.default_rng(8)
    rounds = []
    for seed in range(6):
        first, second, group = in_groups(*rng.normal(size=(2, 30, 25)), 8, seed)
        rounds.append(attack(first, second, seed, resamples=60, clusters=group))
    for figure, chance in (("rank-1", 2 / 240), ("AUC", 0.5), ("EER", 0.5)):
        assert {found[figure].chance for found in rounds} == {chance}
        covered = [found[figure].verdict == "not distinguishable" for found in rounds]
        assert np.mean(covered) > 0.8, figure
    assert np.mean([found["AUC"].value for found in rounds]) == pytest.approx(0.5, abs=0.06)


def test_a_group_is_recognized_and_its_members_are_not():
    first, second, group = in_groups(*sessions(30, 20, 0.05), 4)
    found = attack(first, second, clusters=group)
    assert found["rank-1"].value == pytest.approx(1 / 4)
    assert found["rank-1"].n == 30
    assert found["rank-1"].high > 0.4  # the exact interval of thirty groups, not of 120 speakers
    assert found["AUC"].value == pytest.approx(1 - 3 / 59 / 2)  # three of 59 others are as near
    assert found["AUC"].verdict == "gives away"
    assert "60 speakers in 15 groups" in found["AUC"].note


def test_a_cluster_of_one_is_a_speaker():
    """Whatever the clusters are called; the figures are those of this attack before it had any."""
    first, second = sessions(41, 12, 1.0, seed=5)
    own = np.random.default_rng(0).permutation(41)
    found = attack(first, second, seed=3, resamples=50)
    assert found == attack(first, second, seed=3, resamples=50, clusters=own)
    assert found["rank-1"].value == pytest.approx(18 / 41)
    assert found["AUC"].value == pytest.approx(0.924665, abs=1e-4)
    assert (found["AUC"].low, found["AUC"].high) == pytest.approx((0.8824, 0.9527), abs=1e-3)


def test_refusals():
    first, second = sessions(20, 3, 0.1)
    with pytest.raises(FedsimError, match=r"needs 20 speakers .* there are 19; add speakers"):
        attack(first[:19], second[:19])
    with pytest.raises(FedsimError, match=r"20 speakers are in 10 groups, .*; add speakers"):
        attack(first, second, clusters=np.arange(20) // 2)
    with pytest.raises(
        FedsimError, match=r"speaker 'a' occurs twice: give one release per speaker"
    ):
        attack(first, second, names=["a", "a", *(f"s{i}" for i in range(18))])
    second[3, 1] = np.inf
    with pytest.raises(FedsimError, match=r"row 3 that is not finite"):
        attack(first, second)
