"""What a part of Whisper's vocabulary costs: rows, bytes, tokens outside, and word errors.

    python -m benchmarks.vocabulary --tokens
    python -m benchmarks.vocabulary --wer it:10000 en:10000 en:30000 en:10000:it

The clips are those of scenarios/prompts_languages.yaml (`python -m benchmarks.real_speech` fetches
them). `--tokens` counts tokens of the test references that a list of N words and 256 further rows,
filled with the next words, leave outside. `--wer` compares full precision with and without the
other rows, LANGUAGE:N, with 256 rows for the client's own transcripts; LANGUAGE:N:OTHER keeps the
rows of another language.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from fedsim.base.units import MB
from fedsim.quant.packing import packed_bytes
from fedsim.quant.rows import Rows, kept_rows
from fedsim.quant.switch import switch_of
from fedsim.scenario import find_scenario, load_scenario
from fedsim.speech.clips import ClientData, Clients, read_utterance
from fedsim.speech.corpus import open_clients
from fedsim.speech.models import load_model
from fedsim.speech.models.base import SpeechModel, own_tokens, transcribe_clips
from fedsim.speech.scoring import count_errors
from fedsim.speech.vocabulary import embedding, vocabulary_of

WORDS = (3_000, 10_000, 30_000)
BITS = 5
RESAMPLES = 2_000


def main() -> None:
    """Print the tables that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", action="store_true")
    parser.add_argument("--wer", nargs="*", default=[], metavar="LANGUAGE:N[:OTHER]")
    asked = parser.parse_args()
    scenario = load_scenario(find_scenario("prompts_languages"))
    clients = open_clients(scenario.corpus, scenario.clients, scenario.seed)
    model = load_model(scenario.model.id, window_s=scenario.model.window_s, device="cpu")
    if asked.tokens:
        tokens(model, clients)
    known: dict[str, np.ndarray] = {}
    for choice in asked.wer:
        language, words, *other = choice.split(":")
        word_errors(model, clients[language], int(words), (other or [language])[0], known)


def tokens(model: SpeechModel, clients: Clients) -> None:
    """Print rows, bytes at `BITS` bits, and the share of test tokens outside."""
    layer, split = embedding(model), model.tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    whole = size(layer.shape[0], layer.shape[1])
    print(f"all {layer.shape[0]:,} rows: {whole:.2f} MB at {BITS} bits, one scale per row")
    print("language  words   rows    MB  % of test tokens outside")
    for language, client in sorted(clients.items()):
        texts = [f" {u.text}" for u in client.test]
        ids = [i for text in texts for i in split.encode(text, add_special_tokens=False).ids]
        for words in WORDS:
            rows = vocabulary_of(model, words).rows(language)
            outside = 100 * float(np.mean(~rows.kept[ids]))
            print(
                f"{language:8} {words:6,} {rows.count:6,} {size(rows.count, layer.shape[1]):5.2f}"
                f"  {outside:.2f} of {len(ids)}",
                flush=True,
            )


def size(rows: int, width: int) -> float:
    """Return the MB of some rows of the table at `BITS` bits with a scale of 16 bits each."""
    return (packed_bytes(rows * width, BITS) + 2 * rows) / MB


def word_errors(
    model: SpeechModel, client: ClientData, words: int, other: str, known: dict[str, np.ndarray]
) -> None:
    """Print the WER of the full-precision weights with all rows and with some, and the difference
    with a 95 % bootstrap interval over clips."""
    language, clips = client.language, [read_utterance(u) for u in client.test]
    if client.key not in known:
        known[client.key] = errors(transcribe_clips(model, clips, language), client)
    whole = known[client.key]
    labels = own_tokens(model, [read_utterance(u) for u in client.tuning], language) or []
    rows = vocabulary_of(model, words).own_rows(other, labels if other == language else [])
    part = errors(with_rows(model, clips, language, rows), client)
    rng = np.random.default_rng(0)
    picks = rng.integers(len(whole), size=(RESAMPLES, len(whole)))
    low, high = np.percentile(wer(part[picks]) - wer(whole[picks]), [2.5, 97.5])
    print(
        f"{language} {words:,} words of {other}: {rows.count:,} rows, WER {wer(part):.1f}, all rows"
        f" {wer(whole):.1f}: {wer(part) - wer(whole):+.1f} [{low:.1f}, {high:.1f}]",
        flush=True,
    )


def with_rows(
    model: SpeechModel, clips: Sequence[np.ndarray], language: str | None, rows: Rows
) -> list[str]:
    """Return transcripts by the full-precision weights of these rows."""
    switch = switch_of(model)
    full = switch.full_weights()
    weights = {layer.name: kept_rows(full[layer.name], layer, rows) for layer in model.layers}
    switch.install(weights, {}, {}, None, rows)
    try:
        return transcribe_clips(model, clips, language)
    finally:
        switch.restore()


def errors(hypotheses: Sequence[str], client: ClientData) -> np.ndarray:
    """Return errors and words of each test clip, (clips, 2)."""
    counted = [
        count_errors([u.text or ""], [text])
        for u, text in zip(client.test, hypotheses, strict=True)
    ]
    return np.array([[one.errors, one.words] for one in counted], float)


def wer(counts: np.ndarray) -> np.ndarray:
    """Return the word error rate in percent of counts (..., clips, 2)."""
    total = counts.sum(axis=-2)
    return 100 * total[..., 0] / total[..., 1]


if __name__ == "__main__":
    main()
