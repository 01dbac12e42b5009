"""Fixtures that several rooms share: tiny models in folders, loaded once, and corpora of tones."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may go to the network; read when transformers loads

from collections.abc import Callable, Iterator  # noqa: E402
from functools import cache  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import pytest  # noqa: E402

if TYPE_CHECKING:
    from fedsim.speech.models.base import SpeechModel


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Callable[[str], Path]:
    """name -> a folder with that toy model; see `MAKERS` below for the names."""
    import torch

    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("models")

    @cache
    def make(name: str) -> Path:
        import toys

        makers = {
            "ctc-group": lambda: toys.wav2vec2("group"),
            "ctc-layer": lambda: toys.wav2vec2("layer"),
            "conformer": toys.conformer,
            "classifier": lambda: toys.conformer(head="ForSequenceClassification"),
            "classifier-padded": lambda: toys.wav2vec2(
                "layer", head="ForSequenceClassification", id2label=dict(enumerate(toys.CLASSES))
            ),
            "whisper": toys.whisper,
            "whisper-english": lambda: toys.whisper(multilingual=False),
        }
        return toys.save(makers[name](), home / name)

    return make


@pytest.fixture(scope="session")
def speech(model_folder) -> Callable[[str], SpeechModel]:
    """name -> that toy model, loaded once for all tests: whoever changes it puts it back."""
    from fedsim.speech.models import load_model

    return cache(lambda name: load_model(model_folder(name), batch_size=4))
