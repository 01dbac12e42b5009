"""Which tokens of a model's vocabulary a client's model file keeps (Ushio et al. 2023).

Kept are the special tokens, the bytes, digits and punctuation, the tokens of the N most frequent
words of the client's language, and R reserved rows. A device fills the reserve with tokens of its
own transcripts; where it has fewer, and on the server, it is filled with those of the next words.
How many rows are kept depends on the model, the language, N and R only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn

from fedsim.errors import FedsimError
from fedsim.quant.layers import Layer
from fedsim.quant.rows import Rows
from fedsim.scenario.vocabulary import LANGUAGE
from fedsim.speech.models.base import SpeechModel
from fedsim.speech.words import frequent_words

DEFAULT_OWN = 256
"""Rows reserved for tokens of a device's own transcripts."""
_MORE_WORDS = 20_000
"""Words beyond the N most frequent ones whose tokens may fill the reserve."""
_SPACE = "Ġ"
"""How a byte-level tokenizer writes a space."""
_PLAIN = re.compile(rf"{_SPACE}?(?:[0-9]+|[!-/:-@\[-`{{-~]{{1,3}})")
"""Tokens of digits, or of up to three ASCII punctuation marks."""
_MARKS = "«»‹›“”„‘’‚…–—¿¡·€£°、。「」？！，"
_TIME = re.compile(r"<\|\d+\.\d\d\|>")
"""Special tokens that mark times, which transcripts here do not have."""


class TokenModel(SpeechModel, Protocol):
    """A speech model with a tokenizer, such as `fedsim.speech.models.whisper.Whisper`."""

    tokenizer: Any

    def language_code(self, language: str | None) -> str | None:
        """Return the code of a language; raises `FedsimError` for one that it does not know."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Chooses the rows of a model's token embedding; made by `vocabulary_of`."""

    model: TokenModel
    words: int
    """N, the number of frequent words whose tokens are kept."""
    own: int = DEFAULT_OWN
    """R, the number of rows reserved for a device's own tokens."""
    words_from: str | None = None
    """A text whose words are counted, `{language}` in its name for the language; else wordfreq."""
    _known: dict[str, TokenLists] = field(default_factory=dict)

    def rows(self, language: str | None) -> Rows:
        """Return the rows kept for a language, the reserve filled with tokens of the next words.

        Raises `FedsimError` if the language is missing or unknown.
        """
        return self._rows(language, ())

    def own_rows(self, language: str | None, transcripts: Iterable[torch.Tensor]) -> Rows:
        """Return as many rows, the reserve filled with tokens of these transcripts first.

        The most frequent ones come first, then those with the lowest numbers.
        """
        counts = Counter(chain.from_iterable(ids.tolist() for ids in transcripts))
        return self._rows(language, sorted(counts, key=lambda token: (-counts[token], token)))

    def _rows(self, language: str | None, own: Sequence[int]) -> Rows:
        code = self._code(language)
        if code not in self._known:
            self._known[code] = self._lists(code)
        lists, layer = self._known[code], embedding(self.model)
        kept = filled(lists.kept, chain(own, lists.more), self.own)
        return Rows(layer.name, kept, lists.kept)

    def _lists(self, code: str) -> TokenLists:
        file = self.words_from and self.words_from.replace(LANGUAGE, code)
        words = frequent_words(code, self.words + _MORE_WORDS, file)
        size = embedding(self.model).shape[0]
        return token_lists(self.model.tokenizer, words, self.words, self.own, size)

    def _code(self, language: str | None) -> str:
        code = self.model.language_code(language)
        rules: Any = self.model.module.generation_config
        if code is None and not getattr(rules, "is_multilingual", False):
            code = "en"
        if code is None:
            raise FedsimError(
                "model.vocabulary keeps the tokens of the client's language, and none is given;"
                " give the clips a language (the column that corpus.columns.language names, or"
                " language=), or remove model.vocabulary"
            )
        return code


def vocabulary_of(
    model: SpeechModel,
    words: int,
    own: int = DEFAULT_OWN,
    words_from: str | None = None,
) -> Vocabulary:
    """Return what chooses the rows of a model's token embedding.

    Raises `FedsimError` for a model that has no token embedding which is also its output head, or
    whose tokens are not those of a byte-level tokenizer with languages.
    """
    embedding(model)
    if not hasattr(model, "language_code"):
        raise FedsimError(
            f"model.vocabulary: the tokens of model {model.id!r} have no languages; remove"
            f" model.vocabulary, or choose a Whisper model"
        )
    return Vocabulary(cast(TokenModel, model), words, own, words_from)


def embedding(model: SpeechModel) -> Layer:
    """Return the token embedding of a model, which is also its output head.

    Raises `FedsimError` for a model that has none, or keeps it in full precision.
    """
    modules = dict(model.module.named_modules())
    for layer in model.layers:
        tied = any(isinstance(modules[name], nn.Embedding) for name in layer.aliases)
        head = modules[layer.name]
        if tied and isinstance(head, nn.Linear) and head.bias is None:
            return layer
    raise FedsimError(
        f"model.vocabulary: model {model.id!r} has no token embedding among its layers that is also"
        f" its output head; remove model.vocabulary, or choose a Whisper model that keeps none of"
        f" it in full precision"
    )


@dataclass(frozen=True, eq=False)
class TokenLists:
    """What one language keeps: `kept` is bool (V,), the tokens that it keeps for certain; `more`
    are the next tokens that may fill the reserve, in this order."""

    kept: np.ndarray
    more: tuple[int, ...]


def token_lists(
    tokenizer: Any, words: Sequence[str], count: int, reserve: int, size: int
) -> TokenLists:
    """Return what a language keeps.

    Args:
        tokenizer: a byte-level tokenizer.
        words: of the language, the most frequent first.
        count: how many of them are kept for certain.
        reserve: number of tokens beyond those that may be needed.
        size: number of rows of the token embedding, V.
    """
    kept = np.zeros(size, bool)
    for token in chain(always_kept(tokenizer), word_tokens(tokenizer, words[:count])):
        if token < size:
            kept[token] = True
    # Where a list of words ends, the tokens with the lowest numbers follow: the most frequent ones.
    following = chain(word_tokens(tokenizer, words[count:]), range(size))
    return TokenLists(kept, tuple(islice(_unseen(following, kept), reserve)))


def filled(kept: np.ndarray, following: Iterable[int], reserve: int) -> np.ndarray:
    """Return `kept`, bool (V,), with the first `reserve` tokens of `following` that it lacks."""
    result = kept.copy()
    result[list(islice(_unseen(following, kept), reserve))] = True
    return result


def always_kept(tokenizer: Any) -> Iterator[int]:
    """Yield the tokens that every language keeps: special tokens but times, bytes, digits and
    punctuation."""
    added = tokenizer.added_tokens_decoder
    for text, i in tokenizer.get_vocab().items():
        if i in added:
            if not _TIME.fullmatch(text):
                yield i
        elif len(text) == 1 or _PLAIN.fullmatch(text):  # a single character stands for a byte
            yield i
    yield from word_tokens(tokenizer, _MARKS)


def word_tokens(tokenizer: Any, words: Sequence[str]) -> Iterator[int]:
    """Yield the tokens of words in lower case and capitalized, with a space before them and
    without."""
    # One by one: a batch goes to threads, which fight where every core has a process of its own.
    split = tokenizer.backend_tokenizer.encode
    for word in words:
        for form in dict.fromkeys((word, word[:1].upper() + word[1:])):
            for space in ("", " "):
                yield from split(space + form, add_special_tokens=False).ids


def _unseen(tokens: Iterable[int], kept: np.ndarray) -> Iterator[int]:
    """Yield each token that is not kept yet, once."""
    seen: set[int] = set()
    for token in tokens:
        if token < kept.size and not kept[token] and token not in seen:
            seen.add(token)
            yield token
