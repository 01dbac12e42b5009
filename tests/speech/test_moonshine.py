"""Moonshine: what is refused, and that a batch without tokens is a mistake of the caller."""

from __future__ import annotations

from copy import deepcopy

import pytest
import toys
from family_toys import TOYS

from fedsim import load_model, wrap_model
from fedsim.errors import FedsimError
from fedsim.speech.vocabulary import vocabulary_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return TOYS["MoonshineForConditionalGeneration"].save(tmp_path_factory.mktemp("moonshine"))


def test_a_vocabulary_by_language_needs_tokens_with_languages(folder):
    with pytest.raises(FedsimError, match=r"'\S+' have no languages; remove model.vocabulary"):
        vocabulary_of(load_model(folder), 100)


def test_a_model_with_several_end_tokens(folder):
    model = load_model(folder)
    network = deepcopy(model.module)
    network.config.eos_token_id = [2, 3]
    with pytest.raises(FedsimError, match=r"has eos_token_id \[2, 3\], .*; set one"):
        wrap_model(network, model.extractor, model.tokenizer)


def test_no_tokenizer(folder):
    model = load_model(folder)
    with pytest.raises(FedsimError, match=r"has no tokenizer files .*; add them"):
        wrap_model(deepcopy(model.module), model.extractor)


def test_a_forward_pass_needs_tokens(folder):
    model = load_model(folder)
    ((batch, _),) = model.batches([toys.clip(0.5)])
    with pytest.raises(ValueError, match="needs tokens"):
        model.forward(batch)


def test_clips_of_a_batch_have_one_length(folder):
    """A norm over the whole clip would see the padding."""
    clips = toys.clips([0.5, 0.3, 0.5, 0.3, 0.4])
    assert [p for _, p in load_model(folder).batches(clips)] == [[1, 3], [4], [0, 2]]
