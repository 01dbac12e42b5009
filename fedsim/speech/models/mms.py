"""MMS: one wav2vec 2.0 whose adapters, head and vocabulary are those of one language.

A checkpoint holds `adapter.LANGUAGE.safetensors` for each language (the head is in it too) and a
vocabulary with one part per language (https://huggingface.co/facebook/mms-1b-all).
"""

from __future__ import annotations

from typing import Any

from fedsim.errors import FedsimError, nearest


def choose_language(module: Any, tokenizer: Any, target_lang: str | None, model: str) -> None:
    """Load one language's adapters, head and vocabulary, in place.

    A model without languages is left alone, as is one that has a single language.

    Raises `FedsimError` if the model has several languages and none is chosen, or has not the one
    that is.
    """
    languages = _languages(tokenizer)
    if getattr(module.config, "adapter_attn_dim", None) is None or not languages:
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


def _languages(tokenizer: Any) -> tuple[str, ...]:
    """Return the languages of a tokenizer whose vocabulary has one part for each."""
    vocabulary = getattr(tokenizer, "vocab", None)
    if not isinstance(vocabulary, dict):
        return ()
    parts = vocabulary.values()
    return tuple(vocabulary) if parts and all(isinstance(p, dict) for p in parts) else ()
