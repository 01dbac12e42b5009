"""What stopping loops changes: Whisper base on the real prompts, full and low precision.

    python -m benchmarks.loops            (needs python -m benchmarks.real_speech once)

Prints for each language and size how many clips loop, and the corpus WER with 95 % bootstrap
intervals: of transformers' greedy transcripts, which repeat themselves up to the maximum length; of
ours, which stop; and of ours without the clips that looped. Last, on how many transcripts our rule
and the compression ratio of transformers' long-form generation agree.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.fixtures import prompts, whisper_base
from fedsim import personalize
from fedsim.quant.switch import switch_of
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.models.base import SpeechModel, recognize_clips
from fedsim.speech.models.whisper import EXTRA_TOKENS, TOKENS_PER_SECOND
from fedsim.speech.scoring import Errors, count_errors, interval, total

THRESHOLD = 1.35
"""transformers' `compression_ratio_threshold` for tokens, as its documentation recommends."""
SIZES_MB = (None, 50.0, 46.0, 42.0, 38.0)
"""None is full precision."""


@dataclass(frozen=True)
class Heard:
    """One clip as transformers decodes it and as fedsim does."""

    endless: Errors
    ours: Errors
    looped: bool
    compressible: bool


def compression_ratio(tokens: Sequence[int]) -> float:
    """Return bytes over compressed bytes of tokens, as transformers does for 51,865 of them."""
    data = b"".join(token.to_bytes(2, "little") for token in tokens)
    return len(data) / len(zlib.compress(data))


def endless(model: Any, clips: Sequence[np.ndarray], language: str) -> list[list[int]]:
    """Return the tokens of each clip by transformers' own greedy decoding, up to our maximum."""
    rules = model.module.generation_config
    special = {*rules.lang_to_id.values(), *rules.task_to_id.values(), int(rules.eos_token_id)}
    special |= {int(rules.decoder_start_token_id), int(rules.no_timestamps_token_id)}
    lengths = [EXTRA_TOKENS + math.ceil(TOKENS_PER_SECOND * len(c) / SAMPLE_RATE) for c in clips]
    found: list[list[int]] = [[]] * len(clips)
    for batch, places in model.batches(clips, language):
        rows = model.module.generate(
            batch.inputs["input_features"],
            max_new_tokens=max(lengths[i] for i in places),
            do_sample=False,
            num_beams=1,
            return_timestamps=False,
            language=language,
            task="transcribe",
        )
        for place, row in zip(places, rows.tolist(), strict=True):
            found[place] = [t for t in row if t not in special][: lengths[place]]
    return found


def hear(
    model: SpeechModel, clips: Sequence[np.ndarray], texts: Sequence[str], language: str
) -> list[Heard]:
    """Return both transcripts of every clip, counted."""
    found = []
    tokenizer: Any = model.tokenizer  # type: ignore[attr-defined]
    with torch.inference_mode():
        ours = recognize_clips(model, clips, language)
        raw_tokens = endless(model, clips, language)
        for tokens, text, hypothesis in zip(raw_tokens, texts, ours, strict=True):
            raw = tokenizer.decode(tokens)
            theirs, own = (count_errors([text], [heard]) for heard in (raw, hypothesis.text))
            compressible = compression_ratio(tokens) > THRESHOLD
            found.append(Heard(theirs, own, hypothesis.looped, compressible))
    return found


def rate(clips: Sequence[Errors]) -> str:
    """Return WER and interval in percent."""
    if not clips:
        return "-"
    counted = total(clips)
    low, high = interval(clips, np.random.default_rng(0))
    return f"{100 * counted.errors / counted.words:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=60, help="test clips (default 60)")
    parser.add_argument("--languages", nargs="*", default=["en", "it"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = whisper_base()
    everything: list[Heard] = []
    heads = ["language", "MB", "looped", "WER %, endless", "WER %", "WER % without"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for language in args.languages:
        tuning, clips, texts = prompts(language, 16, args.clips)
        for size in SIZES_MB:
            if size is None:
                found = hear(model, clips, texts, language)
            else:
                small = personalize(
                    model,
                    tuning,
                    budget_mb=size,
                    allocation="myqasr",
                    rounding="nearest",
                    language=language,
                )
                switch = switch_of(model)
                small._install(switch)
                try:
                    found = hear(model, clips, texts, language)
                finally:
                    switch.restore()
            rates = [rate([h.endless for h in found]), rate([h.ours for h in found])]
            rates.append(rate([h.ours for h in found if not h.looped]))
            looped = sum(h.looped for h in found)
            cells = [language, "full" if size is None else f"{size:g}", f"{looped} of {len(found)}"]
            print("| " + " | ".join([*cells, *rates]) + " |", flush=True)
            everything += found
    same = sum(h.looped == h.compressible for h in everything)
    print(f"\n{same} of {len(everything)} transcripts: both rules agree")


if __name__ == "__main__":
    main()
