"""The decoding rules of a Whisper checkpoint, completed where an old one lacks some.

Checkpoints from before 2023 have no generation_config.json, or one without the ids of the prompt's
tokens. They are looked up in the tokenizer, by the names that OpenAI gave these tokens.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fedsim.errors import FedsimError

_START, _QUIET = "<|startoftranscript|>", "<|notimestamps|>"
_TASKS = ("transcribe", "translate")
_ENGLISH_END = 50_256
"""End of text in OpenAI's English-only vocabulary, which has the languages' tokens too; 50,257 in
the multilingual one, whose byte pairs are one more."""


def complete_rules(model: str, module: nn.Module, tokenizer: Any) -> None:
    """Fill in what `module.generation_config` lacks of a Whisper's prompt, in place.

    Nothing that is there is changed. Without `is_multilingual` a model is multilingual if it names
    languages (`lang_to_id`), or if its tokenizer has their tokens and is not OpenAI's English-only
    one.

    Args:
        model: what an error calls it.
        module: a `WhisperForConditionalGeneration`.
        tokenizer: its tokenizer.

    Raises:
        FedsimError: if the tokenizer lacks a token that is needed.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    whole: Any = module
    rules, config = whole.generation_config, whole.config
    ids = tokenizer.get_vocab()

    def token(name: str) -> int:
        if name not in ids:
            raise FedsimError(
                f"the tokenizer of model {model!r} has no token {name}, and its"
                f" generation_config.json does not name one: add the files of the checkpoint that"
                f" it was fine-tuned from"
            )
        return int(ids[name])

    if _absent(rules, "eos_token_id"):
        rules.eos_token_id = _first(config, "eos_token_id", tokenizer.eos_token_id)
    if isinstance(rules.eos_token_id, list):
        rules.eos_token_id = rules.eos_token_id[0]
    if _absent(rules, "decoder_start_token_id"):
        start = _first(config, "decoder_start_token_id", None)
        rules.decoder_start_token_id = token(_START) if start is None else start
    if _absent(rules, "no_timestamps_token_id"):
        rules.no_timestamps_token_id = token(_QUIET)
    spoken = {f"<|{code}|>": int(ids[f"<|{code}|>"]) for code in LANGUAGES if f"<|{code}|>" in ids}
    if _absent(rules, "is_multilingual"):
        named = not _absent(rules, "lang_to_id") and bool(rules.lang_to_id)
        rules.is_multilingual = named or (bool(spoken) and rules.eos_token_id != _ENGLISH_END)
    if not rules.is_multilingual:
        return
    if _absent(rules, "lang_to_id"):
        if not spoken:
            raise FedsimError(
                f"model {model!r} is multilingual, but neither its generation_config.json nor its"
                f" tokenizer names a language: add the files of the checkpoint that it was"
                f" fine-tuned from"
            )
        rules.lang_to_id = spoken
    if _absent(rules, "task_to_id"):
        rules.task_to_id = {task: token(f"<|{task}|>") for task in _TASKS}


def _absent(rules: Any, name: str) -> bool:
    return getattr(rules, name, None) is None


def _first(config: Any, name: str, otherwise: int | None) -> int | None:
    value = getattr(config, name, None)
    return otherwise if value is None else value
