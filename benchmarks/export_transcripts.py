"""Does an exported Whisper hear what fedsim hears with the same weights?

    python -m benchmarks.export_transcripts [--bits 4] [--clips 40] [--window 10] [--to onnx]

Needs `python -m benchmarks.real_speech` before. For each language of the telephone prompts, Whisper
base is rounded to one bit depth, exported and run on as many clips, in each setting of the runtime
(onnxruntime's accuracy levels 0 and 4). Prints bytes, milliseconds per second of audio, peak
memory, how many transcripts equal those of fedsim's emulation with inputs in float32, and those
that do not.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import fedsim
from fedsim.base.paths import resolve
from fedsim.export.check import check
from fedsim.quant.formats import FORMATS
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
    parser.add_argument("--to", default="onnx", help="format of the files")
    parser.add_argument("--languages", nargs="+", help="some of the prompts' (default: all)")
    options = parser.parse_args()
    names, here = FORMATS[options.to].program.settings, Path.cwd()
    model = load_model(resolve("cache:whisper-base", here), window_s=options.window)
    corpus = CorpusSettings(path=resolve("cache:prompts", here), group_by="language")
    spoken: dict[str, list[np.ndarray]] = {}
    for one in read_recordings(corpus).utterances:
        clip = read_utterance(one, convert=True)
        if len(clip) <= options.window * SAMPLE_RATE:
            spoken.setdefault(one.language or "en", []).append(clip)
    for language in options.languages or sorted(spoken):
        clips = spoken[language]
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
            exported = mine.export(Path(home) / "files", to=options.to)
            leftovers = load_leftovers(mine.file.leftovers)
            checked = check(
                model, mine.file.weights, leftovers, exported, chosen, language=language
            )
        for ran in checked.ran:
            print(
                f"{language}, {names[ran.setting]}: {checked.equal(ran)} of {len(chosen)} are equal"
            )
            print(
                f"    {exported.nbytes:,} bytes; {ran.ms_per_s:.1f} ms per second of audio; peak MB"
                f" {ran.loaded_bytes / 2**20:.1f} loaded, {ran.work_bytes / 2**20:.1f} at work"
            )
            for heard, emulated in zip(ran.transcripts, checked.emulated, strict=True):
                if heard != emulated:
                    print(f"    {heard!r} for {emulated!r}")


if __name__ == "__main__":
    main()
