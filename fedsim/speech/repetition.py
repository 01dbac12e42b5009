"""Loops of a decoder: a hypothesis that repeats itself without end is stopped and marked.

A model that decodes token by token, a quantized one above all, sometimes falls into a loop: the
same tokens again and again, up to the maximum length. One such clip has several times as many
errors as words, and decides the rate of a whole test set.

transformers' long-form generation recognizes loops once a segment is decoded, by the ratio of its
tokens' bytes to their zlib compression (`compression_ratio_threshold`, commonly 1.35; OpenAI's
decoder takes 2.4, on the text), and decodes the segment again, by sampling at a higher temperature.
Nothing is sampled here: a hypothesis is stopped while it is decoded, by the repetition itself. That
depends on the clip's own tokens alone and says where the loop begins. Of 1,925 transcripts of real
prompts, by full and by low precision, both rules mark the same 249, and zlib one more
(docs/statistics.md).
"""

from __future__ import annotations

from collections.abc import Sequence

MIN_COPIES, MIN_TOKENS = 4, 24
"""A hypothesis loops as soon as its last tokens are at least four copies of one n-gram, and at
least 24 tokens. That leaves room for what people repeat: a word twenty times, the same digit all
through a telephone number, a sentence three times."""
MIN_COPIES_AT_MAX, MIN_TOKENS_AT_MAX = 2, 8
"""Copies and tokens that are enough, anywhere in it, once a hypothesis has its maximum length: no
speech is so fast, so something went wrong, and in a short clip there is no room for 24 tokens."""


def find_loop(tokens: Sequence[int], min_copies: int, min_tokens: int) -> int | None:
    """Return the number of tokens up to the end of a loop's first copy; None without a loop.

    A loop is one n-gram again and again, up to the last token; its last copy may be incomplete. Of
    several, the one that leaves the fewest tokens counts: a loop within the copies is no loop of
    its own.

    Args:
        tokens: what was decoded so far.
        min_copies: complete copies of the n-gram that make a loop, at least 2.
        min_tokens: tokens that all copies must have together.
    """
    n = len(tokens)
    found = []
    for period in range(1, n // min_copies + 1):
        start = n - period  # of the part that has this period
        while start > 0 and tokens[start - 1] == tokens[start - 1 + period]:
            start -= 1
        if n - start >= max(min_copies * period, min_tokens):
            found.append(start + period)
    return min(found, default=None)


def find_first_loop(tokens: Sequence[int], min_copies: int, min_tokens: int) -> int | None:
    """Return what `find_loop` returns for the shortest prefix of `tokens` that ends in a loop."""
    prefixes = (tokens[:n] for n in range(min_tokens, len(tokens) + 1))
    found = (find_loop(prefix, min_copies, min_tokens) for prefix in prefixes)
    return next((kept for kept in found if kept is not None), None)


def stop(tokens: Sequence[int], end: int, max_tokens: int) -> tuple[int, bool] | None:
    """Return how many tokens a hypothesis keeps and whether it looped; None while it goes on.

    To be called after every token. A hypothesis that looped keeps what comes before the loop and
    the first copy of what is repeated; it has no end token.

    Args:
        tokens: what was decoded so far, without the prompt.
        end: the token that ends a transcript.
        max_tokens: maximum length of the hypothesis, with its end token.
    """
    if tokens[-1] == end:
        return len(tokens), False
    kept = find_loop(tokens, MIN_COPIES, MIN_TOKENS)
    if kept is None and len(tokens) >= max_tokens:
        kept = find_first_loop(tokens, MIN_COPIES_AT_MAX, MIN_TOKENS_AT_MAX)
    if kept is not None:
        return kept, True
    return (len(tokens), False) if len(tokens) >= max_tokens else None
