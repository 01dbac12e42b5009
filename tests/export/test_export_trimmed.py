"""A part of a vocabulary in exported files, planned before a device has chosen its own tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
import toys
import vocabulary_toys
from hypothesis import given, settings
from hypothesis import strategies as st

import fedsim
from fedsim.export.parting import first_parting
from fedsim.export.whisper_files import files
from fedsim.export.whisper_tokens import most_bytes
from fedsim.quant.formats import FORMATS
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.modelfile import load_leftovers
from fedsim.quant.packable import packable
from fedsim.quant.rows import Rows
from fedsim.quant.runtimes import RUNTIMES
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import dequantize_weight
from fedsim.speech.models import load_model
from fedsim.speech.models.base import transcribe_clips
from fedsim.speech.vocabulary import vocabulary_of

CLIPS = toys.clips((0.5, 0.8, 0.63), seed=3)
WORDS, OWN = 1, 4
ROOM = 64  # for any language
QUICK = {"allocation": "uniform", "rounding": "nearest", "calibration": "float"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model and a text."""
    folder = tmp_path_factory.mktemp("trimmed")
    vocabulary_toys.save(folder / "model", seed=1)
    text = "Casa, casa; cane!\nCasa gatto cane casa\n"
    (folder / "words.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def toy(home):
    """The model, and the rows that a server knows."""
    model = load_model(home / "model")
    return model, vocabulary_of(model, WORDS, OWN, str(home / "words.txt")).rows("it")


def text_bytes(model, rows, language="it"):
    return sum(len(text.encode()) for text in files(model, rows, language).values())


def with_own(rows, own):
    """The same rows, the reserve filled with these instead."""
    kept = rows.public.copy()
    kept[own] = True
    return Rows(rows.layer, kept, rows.public)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_no_choice_of_tokens_is_longer_than_planned(toy, data):
    model, rows = toy
    free = np.flatnonzero(~rows.public).tolist()
    own = data.draw(st.lists(st.sampled_from(free), min_size=OWN, max_size=OWN, unique=True))
    planned = most_bytes(model, rows.count, rows.public) + ROOM
    assert text_bytes(model, with_own(rows, own)) <= planned


def test_the_bound_is_that_of_the_longest_token(toy):
    """Of a single one, found by trying all; but for tokens of settings and the digits of numbers
    that are shorter than the last."""
    model, rows = toy
    free = np.flatnonzero(~rows.public).tolist()
    longest = max(text_bytes(model, with_own(rows, [one]), None) for one in free)
    bound = most_bytes(model, int(rows.public.sum()) + 1, rows.public)
    assert longest <= bound
    lists = len(model.module.generation_config.suppress_tokens) + len(
        model.module.generation_config.begin_suppress_tokens
    )
    digits = 3 * 100 + 2 * 10 + 100  # two and one digits too few in the vocabularies, and in ids
    assert bound - longest <= 8 * lists + digits


FORMAT_NAMES = ["onnx", pytest.param("openvino", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=FORMAT_NAMES)
def made(request, toy, home, tmp_path_factory):
    """The format, a personalized model with a budget for its files, and their folder."""
    pytest.importorskip(request.param, reason=f"the extra {request.param} is not installed")
    model, rows = toy
    ready = packable(
        model,
        model.id,
        weight_format=WeightFormat("group_32", True),
        depths=(2, 4, 8),
        settings={},
        format=request.param,
    ).trimmed(rows)
    exact = ready.sizes.total([4] * len(ready.layers))

    def personalized(budget):
        return fedsim.personalize(
            model,
            CLIPS,
            budget_mb=budget / 2**20,
            bit_depths=(2, 4, 8),
            format=request.param,
            weights="group_32",
            language="it",
            vocabulary=WORDS,
            own_tokens=OWN,
            words_from=str(home / "words.txt"),
            **QUICK,
        )

    mine = personalized(exact)
    assert {*mine.bits.values()} == {4}
    assert {*personalized(exact - 1).bits.values()} == {2}
    exported = mine.export(tmp_path_factory.mktemp("files") / "toy", to=request.param)
    return exact, mine, exported


def test_a_budget_holds_to_the_byte(made, toy, tmp_path):
    """Whatever tokens the device has chosen, which are not those that the server counted with."""
    exact, mine, exported = made
    assert sum(file.stat().st_size for file in exported.folder.iterdir()) == exact
    assert mine.file.rows.count == toy[1].count
    assert mine.file.rows.key != toy[1].key
    mine.save(tmp_path / "mine.safetensors")
    again = fedsim.load_personalized(tmp_path / "mine.safetensors", mine.model)
    loaded = again.export(tmp_path / "again", to=exported.format)
    assert exact - 1000 < loaded.nbytes <= exact  # the file does not say which tokens are public
    for name in ("vocab.json", "tokenizer.json", "config.json"):
        assert (loaded.folder / name).read_bytes() == (exported.folder / name).read_bytes()
    assert len(json.loads((loaded.folder / "vocab.json").read_text())) == 256 + 2 + OWN


def test_transcripts_are_those_of_the_emulation(made):
    _, mine, exported = made
    switch, leftovers = switch_of(mine.model), load_leftovers(mine.file.leftovers)
    pairs = zip(mine.model.layers, mine.file.weights, strict=True)
    weights = {layer.name: dequantize_weight(one) for layer, one in pairs}
    switch.install(weights, leftovers, {}, rows=mine.file.rows)
    truth = transcribe_clips(mine.model, CLIPS, "it")
    switch.restore()
    assert all(truth)
    traced = FORMATS[exported.format].trace(mine.model, leftovers)
    runtime = RUNTIMES[f"{exported.format}_float"]
    with runtime.open(traced, mine.file.weights, mine.model, mine.file.rows) as recognize:
        assert [one.text for one in recognize(CLIPS, "it")] == truth


def test_they_part_nowhere(made):
    """The search knows a table with fewer rows."""
    _, mine, exported = made
    chosen = FORMATS[exported.format]
    traced = chosen.trace(mine.model, load_leftovers(mine.file.leftovers))
    how = {"to": exported.format, "setting": next(iter(chosen.program.settings))}
    folder, weights = exported.folder, mine.file.weights
    assert first_parting(mine.model, traced, weights, folder, CLIPS[0], **how) is None
