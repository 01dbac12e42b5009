"""The longest that the files beside a Whisper can be, whichever tokens a device keeps.

A part of a vocabulary is public but for the rows that a device fills with tokens of its own. Which
these are stays on the device, so a budget is planned, and files are filled up, with an upper bound:
public tokens take what they take, and the others what the longest would.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.export.whisper_files import compact, merges, settings, tokens

if TYPE_CHECKING:
    from fedsim.speech.models.base import SpeechModel


def most_bytes(model: SpeechModel, count: int, public: np.ndarray) -> int:
    """Return the bytes of all files beside the graphs, at most, where no language is named.

    Args:
        model: a Whisper.
        count: number of tokens that are kept.
        public: bool (V,), those that are kept for certain; special tokens but times are among them.
    """
    adapter: Any = model
    widest = int("9" * len(str(count - 1)))

    def place(token: int) -> int | None:
        return widest if 0 <= token < public.size and public[token] else None

    # Settings list few tokens: they are as long as if all of them were kept.
    texts = settings(model, lambda token: widest, count, None) | tokens(adapter.tokenizer, place)
    more = np.where(public, 0, _token_bytes(adapter.tokenizer, public, widest))
    longest = np.sort(more)[public.size - (count - int(public.sum())) :]
    return sum(len(text.encode()) for text in texts.values()) + int(longest.sum())


def _token_bytes(tokenizer: Any, public: np.ndarray, number: int) -> np.ndarray:
    """Return the bytes that each further token adds to the files with tokens, at most, int64 (V,).

    A merge is added where its two parts and the whole are kept: it counts for one of them that is
    not public, the whole if that is one.
    """
    found = np.zeros(public.size, np.int64)
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    numbers = whole["model"]["vocab"]

    def add(token: int, *parts: Any) -> None:
        if token < found.size:
            # A colon or a comma in place of each line's end.
            found[token] += sum(len(compact(part).encode()) for part in parts)

    for vocabulary in (numbers, tokenizer.get_vocab()):
        for text, token in vocabulary.items():
            add(token, text, number)
    for special in whole["added_tokens"]:
        add(special["id"], special | {"id": number})
    for a, b in merges(whole):
        for token in (numbers.get(a + b, public.size), numbers[a], numbers[b]):
            if token >= public.size or not public[token]:
                add(token, [a, b])
                break
    return found
