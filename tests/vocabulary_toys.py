"""A tiny Whisper whose tokenizer merges a few words into tokens, so that rows can be dropped."""

from __future__ import annotations

from pathlib import Path

import toys

WORDS = ("casa", "cane", "gatto", "perro", "zorro", "дом", "кот")
"""Each is a token, with a space before it too; so is each of its beginnings of two letters and
more."""


def write_bytes(text: str) -> str:
    """A text as a byte-level tokenizer writes it."""
    from tokenizers import pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(piece for piece, _ in level.pre_tokenize_str(text))


def merges() -> list[tuple[str, str]]:
    """Every merge of the toy's tokenizer, in order of rank."""
    found: dict[tuple[str, str], None] = {}
    for word in map(write_bytes, WORDS):
        found |= {(word[:i], word[i]): None for i in range(1, len(word))}
        found["Ġ", word] = None
    return list(found)


def save(folder: Path, *, seed: int = 0) -> Path:
    """Write the toy as a folder in the transformers layout."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = toys.whisper_special()
    pairs = merges()
    size = 256 + len(special) + len(pairs)
    toys.save(toys.whisper(seed=seed, vocab_size=size), folder)
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= special | {a + b: 256 + len(special) + i for i, (a, b) in enumerate(pairs)}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
