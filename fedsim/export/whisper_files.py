"""The files beside a Whisper in ONNX: configuration, decoding rules, features, tokens.

A part of a vocabulary is a vocabulary of its own: the tokens kept are numbered from 0, in the order
that they had, in every file.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.speech.models.window import window_seconds

if TYPE_CHECKING:
    from fedsim.quant.rows import Rows
    from fedsim.speech.models.base import SpeechModel

_OF_A_FOLDER = ("is_local", "local_files_only", "language", "task")
"""What transformers adds to the settings of a tokenizer that say nothing about it."""
_RULES = ("suppress_tokens", "begin_suppress_tokens", "forced_decoder_ids")
Place = Callable[[int], int | None]
"""Number of a token in the model -> its number in the files; None if it is dropped."""


def files(model: SpeechModel, rows: Rows | None, language: str | None) -> dict[str, str]:
    """Return the texts of all files beside the graphs, by name.

    Args:
        model: a Whisper.
        rows: of its vocabulary, where only a part is kept.
        language: of whoever speaks, as the model takes it; None to have it detected.
    """
    place = _places(rows)
    count = None if rows is None else rows.count
    adapter: Any = model
    return settings(model, place, count, language) | tokens(adapter.tokenizer, place)


def settings(
    model: SpeechModel, place: Place, count: int | None, language: str | None
) -> dict[str, str]:
    """Return the texts of the files with settings, by name.

    Args:
        model: a Whisper.
        place: of each token in the files.
        count: number of tokens in the files; None for all.
        language: of whoever speaks, as the model takes it; None to have it detected.
    """
    adapter: Any = model
    network = adapter.module
    config = _renumbered(json.loads(network.config.to_json_string(use_diff=False)), place)
    rules = _renumbered(json.loads(network.generation_config.to_json_string()), place)
    for name in _RULES:  # transformers would take them for the rules, which are in their own file
        config.pop(name, None)
    if count is not None:
        config["vocab_size"] = count
    code = adapter.language_code(language)
    if code is not None and rules.get("is_multilingual"):
        rules.pop("forced_decoder_ids", None)  # which name a language too
        rules |= {"language": code, "task": "transcribe"}
    return {
        "config.json": _text(config),
        "generation_config.json": _text(rules),
        "preprocessor_config.json": _text(_features(adapter)),
        "tokenizer_config.json": _text(_tokenizer_settings(adapter.tokenizer)),
    }


def tokens(tokenizer: Any, place: Place) -> dict[str, str]:
    """Return the texts of the files with the tokens that have a place, by name."""
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    plain: dict[str, int] = {}
    specials: dict[str, int] = {}
    for token, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if (number := place(i)) is not None:
            (specials if token in added else plain)[token] = number
    return {
        "tokenizer.json": compact(_tokenizer(tokenizer, place)),
        "vocab.json": compact(plain),
        "added_tokens.json": compact(specials),
    }


def _places(rows: Rows | None) -> Place:
    if rows is None:
        return lambda token: token
    numbers = np.where(rows.kept, np.cumsum(rows.kept) - 1, -1)

    def place(token: int) -> int | None:
        number = int(numbers[token]) if 0 <= token < numbers.size else -1
        return None if number < 0 else number

    return place


def _renumbered(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """Return settings of transformers with tokens of the files; dropped ones are left out."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [new for one in value if (new := moved(one)) is not None]
        return place(value) if isinstance(value, int) else value

    result = dict(settings)
    for name, value in settings.items():
        if name.endswith("_token_id") or name in _RULES[:2]:
            result[name] = moved(value)
        elif name.endswith("_to_id"):
            result[name] = {k: new for k, i in value.items() if (new := place(i)) is not None}
        elif name == "forced_decoder_ids" and value:
            result[name] = [[at, moved(token)] for at, token in value]
    return result


def _features(adapter: Any) -> dict[str, Any]:
    """Return the settings of the feature extractor, filling up to the model's window."""
    settings = json.loads(adapter.extractor.to_json_string())
    seconds = math.ceil(window_seconds(adapter.module))  # the encoder cuts what is too much
    rate, hop = settings["sampling_rate"], settings["hop_length"]
    samples = seconds * rate
    return settings | {
        "chunk_length": seconds,
        "n_samples": samples,
        "nb_max_frames": samples // hop,
    }


def _tokenizer(tokenizer: Any, place: Place) -> dict[str, Any]:
    """Return what tokenizer.json has of the tokens that are kept."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    pairs = whole["model"]
    vocabulary = {
        token: number for token, i in pairs["vocab"].items() if (number := place(i)) is not None
    }
    pairs["vocab"] = vocabulary
    pairs["merges"] = [[a, b] for a, b in merges(whole) if {a, b, a + b} <= vocabulary.keys()]
    whole["added_tokens"] = [
        token | {"id": number}
        for token in whole["added_tokens"]
        if (number := place(token["id"])) is not None
    ]
    framed = (whole.get("post_processor") or {}).get("special_tokens", {})
    for token in framed.values():
        token["ids"] = [number for i in token["ids"] if (number := place(i)) is not None]
    return whole


def merges(tokenizer: dict[str, Any]) -> list[list[str]]:
    """Return the merges in a tokenizer.json, each of two tokens."""
    pairs = tokenizer["model"]["merges"]
    return [pair if isinstance(pair, list) else pair.split(" ") for pair in pairs]


def _tokenizer_settings(tokenizer: Any) -> dict[str, Any]:
    """Return the settings of the tokenizer as transformers 4 reads them too."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        settings = json.loads((Path(folder) / "tokenizer_config.json").read_text(encoding="utf-8"))
    if isinstance(settings.get("extra_special_tokens"), list):  # as it is called from 5 on
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return {name: value for name, value in settings.items() if name not in _OF_A_FOLDER}


def _text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, indent=1, ensure_ascii=False) + "\n"


def compact(value: Any) -> str:
    """Return a value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
