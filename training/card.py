"""Measure a trained checkpoint, and put it with its model card where fedsim finds it.

    python -m training.card ctc|keywords [FOLDER]

The scores are of speakers and sentences that were never heard in training. Recordings of a real
voice are scored too, if `python -m benchmarks.real_speech` can bring them.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.real_keywords import real_keywords
from fedsim.base.units import MB
from fedsim.personal import personalize
from fedsim.quant.switch import switch_of
from fedsim.speech.models import load_model
from fedsim.speech.models.base import SpeechModel, transcribe_clips
from fedsim.speech.scoring import Errors, count_correct, count_errors, interval
from fedsim.speech.voices.speaker import UNHEARD_VARIANTS, speaker
from training import heldout

CLIPS = 700
TUNING = 16
BIT_DEPTHS = (8, 6, 5, 4, 3, 2)
BUNDLED = Path(__file__).parents[1] / "fedsim" / "bundled"


def main(name: str, trained: Path) -> None:
    """Copy the checkpoint `name`, measure it and write its card."""
    target = BUNDLED / name
    shutil.copytree(trained / name / "model", target, dirs_exist_ok=True)
    (target / "model.safetensors").chmod(0o644)
    log = torch.load(trained / name / "checkpoint.pt", weights_only=True)["log"]
    model = load_model(f"bundled:{name}", device="cpu")
    clips = heldout.sentences(CLIPS) if name == "ctc" else heldout.words(CLIPS)
    tested, tuning = clips[TUNING:], [clip for clip, _ in clips[:TUNING]]
    audio, texts = [clip for clip, _ in tested], [text for _, text in tested]
    full = _score(model, texts, transcribe_clips(model, audio))
    rows = [("float32", _size(model), _cell(full), "")]
    for bits in BIT_DEPTHS:
        cells = []
        for weights in ("per_channel", "per_tensor"):
            small = personalize(
                model,
                tuning,
                budget_mb=1000,
                allocation="uniform",
                rounding="nearest",
                bit_depths=(bits,),
                weights=weights,
            )
            cells.append(_cell(_score(model, texts, small.transcribe(audio))))
        rows.append((f"{bits} bits", small.nbytes / MB, *cells))
        print(rows[-1], flush=True)
    new = [
        i
        for i in range(len(texts))
        if speaker("en", heldout.FIRST_SPEAKER + TUNING + i).variant in UNHEARD_VARIANTS
    ]
    newcomers = [texts[i] for i in new], transcribe_clips(model, [audio[i] for i in new])
    facts = {
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "unheard": (len(new), *_score(model, *newcomers)),
        "real": real_keywords(model) if name == "keywords" else None,
    }
    (target / "README.md").write_text(_card(name, log, rows, facts), encoding="utf-8")
    print((target / "README.md").read_text())


def _size(model: SpeechModel) -> float:
    return switch_of(model).full_bytes() / MB


def _cell(score: tuple[float, float, float]) -> str:
    return "{:.1f} [{:.1f}, {:.1f}]".format(*score)


def _score(
    model: SpeechModel, texts: list[str], hypotheses: list[str]
) -> tuple[float, float, float]:
    """Return WER, or accuracy, in percent, and its 95 % interval over clips."""
    count = count_correct if model.task == "classify" else count_errors
    each = [count([t], [h]) for t, h in zip(texts, hypotheses, strict=True)]
    low, high = interval(
        each, np.random.default_rng(0), "accuracy" if model.task == "classify" else "wer"
    )
    whole = count(texts, hypotheses)
    return 100 * _rate(whole, model.task), 100 * low, 100 * high


def _rate(errors: Errors, task: str) -> float:
    return errors.correct / errors.clips if task == "classify" else errors.errors / errors.words


_TEXTS = {
    "ctc": {
        "title": "bundled:ctc: English voice commands to letters",
        "what": "A small wav2vec 2.0 (`Wav2Vec2ForCTC`) that writes down English commands to a "
        "home assistant: lights, timers, music, numbers, names. A vocabulary of some 230 words, 26 "
        "letters out, greedy decoding, no language model.",
        "data": "40,000 synthetic sentences and 40,000 single words",
        "recipe": "Batches of 32. In the first 300 steps, clips of one word, each frame labelled "
        "with its letter; then CTC loss, until step 1,200 every other batch with single words.",
        "score": "WER %",
        "limits": "It was trained on synthetic speech only and knows the words of its grammar only:"
        " do not use it to transcribe people. It is there to be quantized, quickly and offline.",
    },
    "keywords": {
        "title": "bundled:keywords: the 35 words of Speech Commands",
        "what": "A small wav2vec 2.0 Conformer (`Wav2Vec2ConformerForSequenceClassification`) that "
        "names one of the 35 words of Speech Commands v0.02 in a clip of about a second.",
        "data": "40,000 synthetic one-word clips",
        "recipe": "Batches of 64, cut or filled to one length of 0.7 to 1.2 s; cross-entropy with "
        "label smoothing 0.1.",
        "score": "accuracy %",
        "limits": "It was trained on synthetic speech only, and always names one of its words. It "
        "is there to be quantized, quickly and offline, not to be shipped.",
    },
}


def _card(
    name: str,
    log: list[dict[str, float]],
    rows: list[tuple[str, float, str, str]],
    facts: dict[str, Any],
) -> str:
    """Return the model card as Markdown."""
    text = _TEXTS[name]
    n, rate, low, high = facts["unheard"]
    table = [f"| {b} | {mb:.2f} | {channel} | {tensor} |" for b, mb, channel, tensor in rows]
    curve = [
        f"| {e['step']:,} | {e['loss']:.3f} | {100 * e['score']:.1f} | {e['seconds'] / 60:.0f} |"
        for e in log
    ]
    lines = [
        f"# {text['title']}",
        "",
        text["what"],
        f"{facts['parameters'] / 1e6:.2f} M parameters, stored as 16-bit floats.",
        "",
        "## Scores",
        "",
        f"{CLIPS - TUNING} clips of as many synthetic speakers, none heard in training, "
        + ("sentences none of which was. " if name == "ctc" else "20 or so of each word. ")
        + f"Uniform bit depths, activations of 8 bits, cosine calibration on "
        f"{TUNING} other clips. 95 % bootstrap intervals over clips.",
        "",
        f"| weights | file MB | {text['score']}, one scale per channel | one per tensor |",
        "|---|---:|---:|---:|",
        *table,
        "",
        f"The synthesizer's voice variants that no training speaker has ({n} of the clips), in "
        f"float32: {rate:.1f} [{low:.1f}, {high:.1f}].",
    ]
    if facts["real"]:
        right = sum(spoken == found for spoken, found in facts["real"])
        heard = ", ".join(f"{s} as {f}" for s, f in facts["real"] if s != f) or "none"
        lines += [
            "",
            f"**A real voice**: {right} of {len(facts['real'])} recorded words right (the digits "
            f'and "no" of one woman, Debian\'s asterisk-core-sounds-en-g722); mistaken: {heard}. '
            "Repeat it with `python -m benchmarks.real_keywords`.",
        ]
    return "\n".join(
        [
            *lines,
            "",
            "## Training",
            "",
            f"{text['data']}, each of a speaker of its own (corpus `voices`, speakers from "
            'number 1,000,000 on, sentences whose role is "training"), spoken by eSpeak NG. '
            "Augmented with speed and pitch, equalization, echo, noise, telephone band and mu-law "
            f"codec. {text['recipe']} AdamW, {log[-1]['step']:,} steps, "
            f"{log[-1]['seconds'] / 60:.0f} minutes on one core of a server CPU with bfloat16 "
            f"arithmetic, beside other work. Repeat it with `python -m training.{name}`.",
            "",
            f"| step | loss | held-out {text['score']} | minutes |",
            "|---:|---:|---:|---:|",
            *curve,
            "",
            "## Limits",
            "",
            text["limits"],
            "",
            "Licence: Apache-2.0, as fedsim.",
            "",
        ]
    )


if __name__ == "__main__":
    given = sys.argv[2] if len(sys.argv) > 2 else "~/.cache/fedsim/training"
    main(sys.argv[1], Path(given).expanduser())
