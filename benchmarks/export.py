r"""An exported model against the same network in float32, both in one runtime, by turns.

    python -m benchmarks.export [--budget 1.6] [--depths 4] [--clips 40]
    python -m benchmarks.export --model cache:whisper-base --window 10 --corpus cache:prompts \
        --budget 41
    python -m benchmarks.export --to openvino --depths 3

Prints milliseconds per second of audio on one thread, peak memory and bytes, and their ratios. Each
number is the median of five processes, packed and float32 in turn.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import fedsim
from fedsim.base.paths import resolve
from fedsim.export.check import Ran, run_exported
from fedsim.export.onnx import trace
from fedsim.export.onnx_graph import in_float32
from fedsim.export.openvino_run import text_file
from fedsim.quant.formats import FORMATS
from fedsim.quant.switch import switch_of
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.clips import read_utterance
from fedsim.speech.models import load_model
from fedsim.speech.public import public_request, public_set
from fedsim.speech.readers import read_recordings

TURNS = 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="bundled:ctc")
    parser.add_argument(
        "--window", type=float, help="seconds of audio that Whisper's encoder takes"
    )
    parser.add_argument("--corpus", help="English recordings, instead of synthetic voices")
    parser.add_argument("--budget", type=float, default=1.6)
    parser.add_argument("--depths", type=int, nargs="+", default=[4])
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--to", default="onnx", help="format of the files")
    options = parser.parse_args()
    settings = FORMATS[options.to].program.settings
    model = load_model(resolve(options.model, Path.cwd()), window_s=options.window, device="cpu")
    clips = _clips(options.corpus, options.clips, options.window)
    mine = fedsim.personalize(
        model,
        clips[:16],
        budget_mb=options.budget,
        bit_depths=options.depths,
        allocation="uniform",
        rounding="nearest",  # which codes there are changes no speed
        language="en" if model.needs_tokens else None,
    )
    with tempfile.TemporaryDirectory() as home:
        packed, whole = Path(home) / "packed", Path(home) / "float32"
        shipped = mine.export(packed, to=options.to)
        shutil.copytree(packed, whole)
        switch = switch_of(model)
        full = switch.full_weights()
        weights = [full[layer.name].numpy() for layer in model.layers]
        for name, graph in trace(model, switch.full_leftovers()).graphs.items():
            _write(whole / name, in_float32(graph, weights), options.to)
        file = Path(home) / "clips.npz"
        np.savez(file, **{f"{i:06d}": clip for i, clip in enumerate(clips)})  # type: ignore[arg-type]
        runs: dict[str, list[Ran]] = {}
        for _ in range(TURNS):
            exact = next(iter(settings))
            runs.setdefault("float32", []).append(run_exported(whole, file, exact, options.to))
            for setting, title in settings.items():
                ran = run_exported(packed, file, setting, options.to)
                runs.setdefault(f"packed, {title}", []).append(ran)
        graphs = [name for name in shipped.files if name.endswith((".onnx", ".xml", ".bin"))]
        sizes = {
            folder: sum((folder / name).stat().st_size for name in graphs)
            for folder in (packed, whole)
        }
    base = runs["float32"]
    print(f"{options.model} at {sorted(set(mine.bits.values()))} bits, {len(clips)} clips")
    print(f"bytes: packed {sizes[packed]:,}, float32 {sizes[whole]:,}")
    for name, found in runs.items():
        numbers = []
        for field, unit in (("ms_per_s", 1.0), ("loaded_bytes", 2**20), ("work_bytes", 2**20)):
            value, other = (
                statistics.median(getattr(one, field) / unit for one in many)
                for many in (found, base)
            )
            numbers.append(f"{value:8.1f} ({value / other:.2f} x)")
        print(f"{name:16} ms/s {numbers[0]}  MB loaded {numbers[1]}  MB at work {numbers[2]}")


def _write(graph: Path, whole: Any, to: str) -> None:
    """Write a graph in float32 (`onnx.ModelProto`), whose path has its name in ONNX."""
    if to == "onnx":
        graph.write_bytes(whole.SerializeToString())
        return
    import openvino

    model = openvino.Core().read_model(model=whole.SerializeToString())
    openvino.save_model(model, text_file(graph), compress_to_fp16=False)


def _clips(corpus: str | None, n: int, window: float | None) -> list[np.ndarray]:
    """Return recordings that fit the window, spread over a corpus, or synthetic voices."""
    if corpus is None:
        return [one.clip for one in public_set(public_request(n_clips=n)).clips]
    settings = CorpusSettings(path=resolve(corpus, Path.cwd()), group_by="language")
    spoken = [one for one in read_recordings(settings).utterances if one.language == "en"]
    found = (read_utterance(one, convert=True) for one in spoken[:: max(1, len(spoken) // (2 * n))])
    fitting = (clip for clip in found if window is None or len(clip) <= window * SAMPLE_RATE)
    return list(islice(fitting, n))


if __name__ == "__main__":
    main()
