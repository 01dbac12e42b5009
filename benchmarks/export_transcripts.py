"""Does an exported Whisper hear what fedsim hears with the same weights?

    python -m benchmarks.export_transcripts [--bits 4] [--clips 40] [--window 10]

Needs `python -m benchmarks.real_speech` before. For each language of the telephone prompts, Whisper
base is rounded to one bit depth, exported and run on as many clips, at onnxruntime's accuracy
levels 0 and 4. Prints how many transcripts equal those of fedsim's emulation with inputs in
float32, and those that do not.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import fedsim
from fedsim.base.paths import resolve
from fedsim.export.check import check
from fedsim.quant.modelfile import load_leftovers
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.clips import read_utterance
from fedsim.speech.models import load_model
from fedsim.speech.readers import read_recordings


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--clips", type=int, default=40, help="of each language")
    parser.add_argument("--window", type=float, default=10.0)
    options = parser.parse_args()
    here = Path.cwd()
    model = load_model(resolve("cache:whisper-base", here), window_s=options.window)
    corpus = CorpusSettings(path=resolve("cache:prompts", here), group_by="language")
    spoken: dict[str, list[np.ndarray]] = {}
    for one in read_recordings(corpus).utterances:
        clip = read_utterance(one, convert=True)
        if len(clip) <= options.window * SAMPLE_RATE:
            spoken.setdefault(one.language or "en", []).append(clip)
    for language, clips in sorted(spoken.items()):
        chosen = clips[:: max(1, len(clips) // options.clips)][: options.clips]
        mine = fedsim.personalize(
            model,
            chosen,
            budget_mb=200,
            allocation="uniform",
            rounding="nearest",
            calibration="float",
            bit_depths=(options.bits,),
            weights="group_64",
            language=language,
        )
        with tempfile.TemporaryDirectory() as home:
            exported = mine.export(Path(home) / "onnx")
            leftovers = load_leftovers(mine.file.leftovers)
            checked = check(
                model, mine.file.weights, leftovers, exported, chosen, language=language
            )
        for ran in checked.ran:
            print(f"{language}, level {ran.level}: {checked.equal(ran)} of {len(chosen)} are equal")
            for heard, emulated in zip(ran.transcripts, checked.emulated, strict=True):
                if heard != emulated:
                    print(f"    {heard!r} for {emulated!r}")


if __name__ == "__main__":
    main()
