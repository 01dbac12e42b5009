"""MMS: one wav2vec 2.0 whose adapters, head and vocabulary are those of one language.

A checkpoint holds `adapter.LANGUAGE.safetensors` for each language (the head is in it too) and a
vocabulary with one part per language (https://huggingface.co/facebook/mms-1b-all).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedsim.errors import FedsimError, nearest
from fedsim.speech.languages import language_code

_SCRIPT = "-script_"
"""Between a language and its script, where a checkpoint has the language in several."""


def choose_language(module: Any, tokenizer: Any, target_lang: str | None, model: str) -> None:
    """Load one language's adapters, head and vocabulary, in place.

    A model without languages is left alone, as is one that has a single language.

    Raises `FedsimError` if the model has several languages and none is chosen, or has not the one
    that is.
    """
    languages = languages_of(module.config, lambda: tokenizer)
    if not languages:
        if target_lang is not None:
            raise FedsimError(
                f"model.target_lang is {target_lang!r}, but model {model!r} has no adapters of"
                f" languages, or no vocabularies for them; remove target_lang"
            )
        return
    if target_lang is None:
        if len(languages) == 1:
            return
        raise FedsimError(
            f"model {model!r} has an adapter for each of {len(languages)} languages; choose one by"
            f" model.target_lang, or load_model(..., target_lang=): for example"
            f" {', '.join(sorted(languages)[:5])}"
        )
    if target_lang not in languages:
        raise FedsimError(
            f"model.target_lang is {target_lang!r}, of which model {model!r} has no vocabulary:"
            f" {nearest(target_lang, languages)}"
        )
    try:
        module.load_adapter(target_lang)
    except Exception as error:  # transformers, safetensors and torch each raise their own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise FedsimError(
            f"model.target_lang is {target_lang!r}, but adapter.{target_lang}.safetensors of model"
            f" {model!r} cannot be read: {lines[0].rstrip('.:')}; fetch it again"
        ) from error
    tokenizer.set_target_lang(target_lang)


def languages_of(config: Any, read: Callable[[], Any]) -> tuple[str, ...]:
    """Return the languages of which a model has adapters and a vocabulary each, its tokenizer's own
    first, then by name; empty for a model without.

    `read` returns the tokenizer, and is called if there are adapters.
    """
    if getattr(config, "adapter_attn_dim", None) is None:
        return ()
    tokenizer = read()
    vocabulary = getattr(tokenizer, "vocab", None)
    if not isinstance(vocabulary, dict) or not vocabulary:
        return ()
    if not all(isinstance(part, dict) for part in vocabulary.values()):
        return ()
    own = getattr(tokenizer, "target_lang", None)
    return tuple(sorted(vocabulary, key=lambda name: (name != own, name)))


def language_among(language: str | None, languages: tuple[str, ...], model: str) -> str:
    """Return what a model calls the language that a client speaks.

    Corpora say `el`, `el_gr` or `ell`, and MMS says `ell`; a name of the model's own is taken as it
    is.

    Raises `FedsimError` if none is given, the model has it not, or in several scripts.
    """
    if not language:
        raise FedsimError(
            f"model {model!r} has an adapter for each of {len(languages)} languages, and the"
            f" client's is not known; name the column that has it by corpus.columns.language, or"
            f" choose one language for all by model.target_lang"
        )
    if language in languages:
        return language
    code = language_code(language)
    found = [name for name in languages if language_code(name.partition(_SCRIPT)[0]) == code]
    if len(found) == 1:
        return found[0]
    if found:
        raise FedsimError(
            f"language {language!r} is {' or '.join(sorted(found))} in model {model!r}; write one"
            f" of these in the corpus' column of languages"
        )
    raise FedsimError(
        f"language {language!r}, for which model {model!r} has no adapter:"
        f" {nearest(language, languages)}; choose other clients, or one language for all by"
        f" model.target_lang"
    )
