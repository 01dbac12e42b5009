"""`personalize` with a part of the vocabulary: exact sizes, equal transcripts, nothing remains."""

from __future__ import annotations

import os

import pytest
import torch
import toys
import vocabulary_toys

from fedsim import load_model, load_personalized, personalize
from fedsim.base.units import MB
from fedsim.errors import FedsimError
from fedsim.quant import modelfile
from fedsim.quant.switch import switch_of
from fedsim.speech.models.base import own_tokens
from fedsim.speech.vocabulary import vocabulary_of

CLIPS = toys.clips([0.5, 0.7])
ALWAYS = 256 + len(toys.whisper_special())
OPTIONS = {
    "allocation": "uniform",
    "rounding": "scaled",
    "calibration": "minmax",
    "language": "it",
    "budget_mb": 0.075,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(vocabulary_toys.save(tmp_path_factory.mktemp("words") / "whisper"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("Casa, casa; cane!\nCasa gatto cane casa\n", encoding="utf-8")
    return str(path)


def made(model, text, **options):
    return personalize(model, CLIPS, words_from=text, **(OPTIONS | options))


def test_size_file_and_transcripts(model, text, tmp_path):
    pm = made(model, text, vocabulary=2, own_tokens=3)
    path = tmp_path / "user.safetensors"
    assert pm.save(path) == os.path.getsize(path) == pm.nbytes <= int(0.075 * MB)
    assert pm.file.rows.count == ALWAYS + 4 + 3
    again = load_personalized(path)
    assert again.transcribe(CLIPS) == pm.transcribe(CLIPS)
    assert (again.file.rows.kept == pm.file.rows.kept).all()
    assert again.nbytes == pm.nbytes
    assert again.mean_bits == pm.mean_bits


def test_words_by_hand(model, text):
    """Bytes and special tokens, and the two most frequent words with and without a space."""
    rows = vocabulary_of(model, 2, 0, text).rows("it")
    first = len(toys.whisper_special()) + 256
    names = {first + i: a + b for i, (a, b) in enumerate(vocabulary_toys.merges())}
    dropped = {name for i, name in names.items() if not rows.kept[i]}
    kept = set(names.values()) - dropped
    assert rows.kept[:first].all()
    assert kept == {"casa", "Ġcasa", "cane", "Ġcane"}


def test_fewer_bytes(model, text):
    whole = made(model, None, allocation="uniform")
    small = made(model, text, vocabulary=1, own_tokens=0)
    rows = small.file.rows
    assert rows.count < rows.kept.size
    assert small.mean_bits >= whole.mean_bits


def test_dropped_tokens_are_never_written(model, text):
    """Not even where every logit of a kept token is far below."""
    pm = made(model, text, vocabulary=1, own_tokens=0)
    switch = switch_of(model)
    pm._install(switch)
    try:
        for ids in own_tokens(model, CLIPS, "it"):
            assert pm.file.rows.kept[ids].all()
        head = model.module.proj_out(torch.full((1, 32), 1e3))[0]
    finally:
        switch.restore()
    kept = torch.from_numpy(pm.file.rows.kept)
    assert torch.isinf(head[~kept]).all()
    assert (head[~kept] < 0).all()
    assert torch.isfinite(head[kept]).all()


def test_nothing_remains(model, text):
    before = {name: t.clone() for name, t in model.module.state_dict().items()}
    logits = model.module.proj_out(torch.ones(1, 32))
    made(model, text, vocabulary=1, own_tokens=0).transcribe(CLIPS)
    after = model.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(model.module.proj_out(torch.ones(1, 32)), logits)
    embedding = model.module.model.decoder.embed_tokens
    assert "forward" not in vars(embedding)
    assert not embedding._forward_hooks
    assert not model.module.proj_out._forward_hooks


def test_the_rows_are_those_of_the_whole_table(model, text):
    """Row by row, the packed rows stand for the rows of the full-precision table."""
    pm = made(model, text, vocabulary=2, own_tokens=0, bit_depths=[16], budget_mb=1.0)
    full = switch_of(model).full_weights()["proj_out"]
    found = pm._weights["proj_out"]
    assert torch.allclose(found, full[pm.file.rows.index], atol=1e-4)


def test_own_tokens_come_first(model, text):
    """The reserve holds what the model itself wrote, most frequent first."""
    written = torch.cat(own_tokens(model, CLIPS, "it")).tolist()
    words = [i for i in dict.fromkeys(written) if i >= ALWAYS]
    assert words, "the toy writes tokens that no byte stands for"
    chosen = vocabulary_of(model, 1, len(words), text)
    own = chosen.own_rows("it", own_tokens(model, CLIPS, "it"))
    assert own.kept[words].all()
    assert own.count == chosen.rows("it").count
    assert own.bitmap.nbytes == chosen.rows("it").bitmap.nbytes


@pytest.mark.parametrize("weights", ["per_tensor", "per_channel", "group_32"])
@pytest.mark.parametrize("zero_points", [False, True])
def test_every_format(model, text, tmp_path, weights, zero_points):
    pm = made(model, text, vocabulary=1, own_tokens=5, weights=weights, zero_points=zero_points)
    assert pm.save(tmp_path / "user.safetensors") == pm.nbytes
    file = modelfile.read(tmp_path / "user.safetensors", model.layers)
    assert file.manifest == pm.file.manifest
    assert all(
        a.payload.tobytes() == b.payload.tobytes()
        for a, b in zip(file.weights, pm.file.weights, strict=True)
    )


@pytest.mark.parametrize("calibration", ["cosine", "hessian", "dynamic", "float", "none"])
def test_every_calibration(model, text, calibration):
    pm = made(model, text, vocabulary=1, own_tokens=5, calibration=calibration)
    assert len(pm.transcribe(CLIPS)) == len(CLIPS)


def test_mistakes(model, text, speech, tmp_path):
    with pytest.raises(FedsimError, match="none is given; give the clips a language"):
        made(model, text, vocabulary=1, language=None)
    with pytest.raises(FedsimError, match="no token embedding"):
        personalize(speech("ctc-group"), CLIPS, vocabulary=1, **OPTIONS)
    russian = tmp_path / "russian.txt"
    russian.write_text("дом кот дом", encoding="utf-8")
    with pytest.raises(FedsimError, match="mostly in Cyrillic, and language 'it' is written in"):
        made(model, str(russian), vocabulary=1)
    (tmp_path / "none.txt").write_text("1 2 3")
    with pytest.raises(FedsimError, match="has no words"):
        made(model, str(tmp_path / "none.txt"), vocabulary=1)
    with pytest.raises(FedsimError, match=r"missing.txt: the file does not exist: check the path"):
        made(model, str(tmp_path / "missing.txt"), vocabulary=1)
