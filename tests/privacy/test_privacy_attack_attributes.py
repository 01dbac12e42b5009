"""Attribute inference on planted leaks, on noise, and on what a careless attack falls for."""

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from fedsim.errors import FedsimError
from fedsim.privacy.attacks.attributes import infer_attribute


def attack(vectors, labels, speakers=None, seed=0):
    if speakers is None:
        speakers = [f"s{i:03}" for i in range(len(vectors))]
    found = infer_attribute(
        vectors,
        np.asarray(labels),
        np.asarray(speakers),
        np.random.default_rng(seed),
        attribute="gender",
        release="medians",
        resamples=400,
    )
    return {finding.figure: finding for finding in found}


def planted(speakers, features=8, shift=3.0, classes=("female", "male"), seed=0):
    """Vectors with one feature that holds the class, and the classes."""
    labels = np.resize(classes, speakers)
    vectors = np.random.default_rng(seed).normal(size=(speakers, features))
    vectors[:, 3] += shift * np.unique(labels, return_inverse=True)[1]
    return vectors, labels


def test_a_planted_attribute_is_found():
    found = attack(*planted(60))
    assert found["AUC"].value > 0.95
    assert found["AUC"].verdict == "gives away"
    assert found["accuracy"].value > 0.85
    assert found["balanced accuracy"].value > 0.85
    assert found["AUC, shuffled labels"].verdict == "not distinguishable"
    assert found["AUC"].chance == found["balanced accuracy"].chance == 0.5
    assert all(f.low <= f.value <= f.high for f in found.values())


def test_a_leak_that_no_line_separates_is_found():
    """The class is whether a feature is near its mean, which only trees and neighbours can tell."""
    rng = np.random.default_rng(1)
    labels = np.arange(160) % 2
    vectors = rng.normal(size=(160, 4))
    vectors[:, 2] = np.where(labels, rng.choice([-3, 3], 160), 0) + rng.normal(0, 0.5, 160)
    found = attack(vectors, labels)
    assert found["AUC"].value > 0.9
    assert "logistic" not in found["AUC"].note


def test_three_unequal_classes():
    labels = ["a"] * 6 + ["b"] * 12 + ["c"] * 18
    vectors = np.random.default_rng(2).normal(size=(36, 3))
    vectors += 4 * np.eye(3)[[0] * 6 + [1] * 12 + [2] * 18]
    found = attack(vectors, labels)
    assert found["AUC"].value > 0.9
    assert found["balanced accuracy"].chance == pytest.approx(1 / 3)
    assert found["accuracy"].chance == 0.5
    assert found["accuracy"].value > 0.75
    assert "50 % of the releases are of 'c'" in found["AUC"].note


def test_the_order_of_releases_does_not_matter():
    """Nor is the minimum of speakers too few."""
    vectors, labels = planted(20, features=4, shift=2.0)
    speakers = np.array([f"s{i % 10:03}" for i in range(20)])
    order = np.random.default_rng(3).permutation(20)
    assert attack(vectors, labels, speakers) == attack(
        vectors[order], labels[order], speakers[order]
    )


def test_a_speakers_signature_is_no_attribute():
    """Releases that give away the speaker but not the gender: recognizing speakers helps nobody."""
    rng = np.random.default_rng(4)
    speaker = np.repeat(np.arange(40), 6)
    labels = (rng.permutation(40) % 2)[speaker]
    vectors = rng.normal(size=(40, 10))[speaker] + 0.1 * rng.normal(size=(240, 10))
    careless = cross_val_score(
        KNeighborsClassifier(3), vectors, labels, cv=StratifiedKFold(5, shuffle=True)
    )
    assert careless.mean() > 0.95
    found = attack(vectors, labels, speaker)
    for figure in ("AUC", "accuracy", "balanced accuracy"):
        assert found[figure].verdict == "not distinguishable"
        assert found[figure].value < 0.7


@pytest.mark.parametrize("vectors", [np.full((20, 3), 7.0), np.zeros((20, 0))])
def test_a_release_that_carries_nothing(vectors):
    found = attack(vectors, ["f"] * 12 + ["m"] * 8)
    assert {name: f.value for name, f in found.items()} == {
        "AUC": 0.5,
        "balanced accuracy": 0.5,
        "accuracy": 0.6,
        "AUC, shuffled labels": 0.5,
    }
    assert all(f.verdict == "not distinguishable" for f in found.values())
    assert "all releases are the same" in found["AUC"].note


def test_refusals():
    vectors, labels = planted(20)
    with pytest.raises(FedsimError, match=r"gender 'male' has 4 speakers, fewer than the 5 folds"):
        attack(vectors, ["female"] * 16 + ["male"] * 4)
    with pytest.raises(FedsimError, match=r"all speakers have one gender \(female\)"):
        attack(vectors, ["female"] * 20)
    with pytest.raises(FedsimError, match=r"'s1' has releases with two values of gender"):
        attack(vectors, labels, ["s1", *(f"t{i}" for i in range(18)), "s1"])
    vectors[7, 2] = np.nan
    with pytest.raises(FedsimError, match=r"'medians' has a number in row 7 that is not finite"):
        attack(vectors, labels)


@pytest.mark.slow
def test_noise_is_at_chance_in_95_of_100():
    """The intervals of 60 cases of noise, twice each: once with true labels, once shuffled."""
    covered = []
    for seed in range(60):
        vectors, labels = planted(60, shift=0.0, seed=100 + seed)
        found = attack(vectors, labels, seed=seed)
        covered += [f.verdict == "not distinguishable" for f in found.values()]
    assert 0.92 < np.mean(covered) < 1
