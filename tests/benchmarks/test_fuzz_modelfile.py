"""The fuzzer of model files: nothing is found in a few tries, and what is wrong would be."""

from __future__ import annotations

import random

import pytest

from benchmarks.fuzz import model_damage, modelfile
from benchmarks.fuzz.judging import finding, wordy
from fedsim.errors import FedsimError


def test_a_few_inputs_of_each_kind(tmp_path):
    assert [modelfile.try_one(random.Random(seed), tmp_path) for seed in range(120)] == [None] * 120


def test_what_counts_as_read_badly():
    def fails() -> str:
        raise KeyError("bits")

    assert finding(b"x", lambda: "") is None
    assert finding(b"x", lambda: "accepted").what == "accepted"
    assert finding(b"x", fails).what.rstrip().endswith("KeyError: 'bits'")
    assert wordy(FedsimError("short")) == ""
    assert "1,600 characters" in wordy(FedsimError("x" * 1600))
    assert "cannot be printed" in wordy(FedsimError("\ud800"))


@pytest.mark.parametrize("damage", model_damage.DAMAGES, ids=lambda damage: damage.__name__)
def test_each_damage_changes_a_file_and_a_seed_gives_it_again(damage, tmp_path):
    data, _ = modelfile._valid(tmp_path)[0]
    changed = {model_damage.damaged(data, random.Random(seed), [damage]) for seed in range(30)}
    assert len(changed - {data}) > 3
    again = [model_damage.damaged(data, random.Random(3), [damage]) for _ in range(2)]
    assert again[0] == again[1]


def test_the_hash_of_a_valid_file_is_the_one_that_it_has(tmp_path):
    for data, _ in modelfile._valid(tmp_path):
        assert model_damage.rehashed(data) == data
