"""An exported model against the same network in float32, both in onnxruntime, by turns.

    python -m benchmarks.export [--budget 1.6] [--depths 4] [--clips 40]

Prints milliseconds per second of audio on one thread, peak memory and bytes, and their ratios. Each
number is the median of five processes, packed and float32 in turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np

import fedsim
from fedsim.export import ctc
from fedsim.export.check import LEVELS, Ran, run_exported
from fedsim.speech.models import load_model
from fedsim.speech.public import public_request, public_set

TURNS = 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="bundled:ctc")
    parser.add_argument("--budget", type=float, default=1.6)
    parser.add_argument("--depths", type=int, nargs="+", default=[4])
    parser.add_argument("--clips", type=int, default=40)
    options = parser.parse_args()
    model = load_model(options.model, device="cpu")
    clips = [one.clip for one in public_set(public_request(n_clips=options.clips)).clips]
    mine = fedsim.personalize(
        model, clips[:16], budget_mb=options.budget, bit_depths=options.depths
    )
    with tempfile.TemporaryDirectory() as home:
        packed, whole = Path(home) / "packed", Path(home) / "float32"
        mine.export(packed)
        whole.mkdir()
        (whole / "model.onnx").write_bytes(ctc.trace(model).SerializeToString())
        (whole / "vocab.txt").write_bytes((packed / "vocab.txt").read_bytes())
        file = Path(home) / "clips.npz"
        np.savez(file, **{f"{i:06d}": clip for i, clip in enumerate(clips)})  # type: ignore[arg-type]
        runs: dict[str, list[Ran]] = {}
        for _ in range(TURNS):
            runs.setdefault("float32", []).append(run_exported(whole, file, 0))
            for level in LEVELS:
                runs.setdefault(f"packed, level {level}", []).append(
                    run_exported(packed, file, level)
                )
        sizes = {folder: (folder / "model.onnx").stat().st_size for folder in (packed, whole)}
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


if __name__ == "__main__":
    main()
