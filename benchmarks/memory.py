"""Memory of `personalize` with its defaults, step by step, beside the parts that shapes give.

    python -m benchmarks.memory                       (needs python -m benchmarks.real_speech once)
    python -m benchmarks.memory --width 1024 --blocks 6 --float16

The model has the shape of Whisper, `--width` and `--blocks` wide and deep, and random weights; its
tokenizer is that of Whisper base. A process of its own loads it from a file and personalizes it on
the processor on three clips of two seconds, with some four bits for each weight. Prints the peak of
its resident memory in each step (Linux): what it has alone, and pages of files, which the system
may drop. Beside it stands the sum of what the process held before, and of the parts that follow
from the shapes of the model's layers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from fedsim.base.paths import cache_dir
from fedsim.base.units import MB, size_words

STEPS = {
    "losses_on": "table of losses",
    "second_moments": "second moments of public clips",
    "one_pass": "second moments of own clips",
    "round_plan": "rounding",
    "load_model": "loading",
    "personalize": "everything else",
}
"""Function -> the step that it is part of; of several that have begun, the first here."""
SECONDS, POLL_S = 2, 0.01


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--float16", action="store_true", help="weights and computing in float16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "model"
        processes = multiprocessing.get_context("spawn")
        for work, words in (
            (write, (folder, options.width, options.blocks, options.float16)),
            (measure, (folder, Path(home) / "cache", options.float16)),
        ):
            process = processes.Process(target=work, args=words)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)


def write(folder: Path, width: int, blocks: int, half: bool) -> None:
    """Write a Whisper of random weights."""
    import torch
    from transformers import AutoConfig, WhisperForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()
    base = cache_dir() / "whisper-base"
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    config = AutoConfig.from_pretrained(base)
    changes = {"d_model": width, "dtype": "float16" if half else "float32"}
    for side in ("encoder", "decoder"):
        changes |= {
            f"{side}_layers": blocks,
            f"{side}_attention_heads": width // 64,
            f"{side}_ffn_dim": 4 * width,
        }
    config.update(changes)
    torch.manual_seed(0)
    module = WhisperForConditionalGeneration(config)
    (module.half() if half else module).save_pretrained(folder)
    shutil.copy(base / "generation_config.json", folder)


def measure(folder: Path, cache: Path, half: bool) -> None:
    """Personalize the model; print the peaks."""
    os.environ["FEDSIM_CACHE"] = str(cache)
    import numpy as np
    import torch

    from fedsim.personal.method import personalize
    from fedsim.quant.footprint import rounding_bytes, table_bytes
    from fedsim.quant.granularities import WeightFormat
    from fedsim.quant.moments import moment_shapes
    from fedsim.quant.switch import switch_of
    from fedsim.speech.models import load_model
    from fedsim.speech.public_model import DENSE_BYTES

    torch.set_num_threads(2)
    peaks: dict[str, tuple[int, int]] = {}
    over = threading.Event()
    watching = threading.Thread(
        target=watch, args=(threading.get_ident(), peaks, over), daemon=True
    )
    load_model("bundled:ctc", device="cpu")  # so that all that is imported is there
    began = resident()
    watching.start()
    rng = np.random.default_rng(0)
    clips = [(0.1 * rng.standard_normal(SECONDS * 16_000)).astype(np.float32) for _ in range(6)]
    dtype = "float16" if half else "float32"
    model = load_model(folder, window_s=SECONDS, dtype=dtype, device="cpu")
    weights = switch_of(model).full_bytes()
    budget_mb = 0.6 * sum(layer.n_weights for layer in model.layers) / MB
    made = personalize(model, clips[:3], budget_mb=budget_mb, public_clips=clips[3:])
    over.set()
    watching.join()
    (kept,) = (cache / "public").glob("moments-*")
    moments, layers, how = kept.stat().st_size, model.layers, WeightFormat("group_128", True)
    shapes = moment_shapes(model)
    work = sum(rounding_bytes(layers, shapes, reads_moments=True, gpu=False))
    table = sum(table_bytes(layers, how, range(2, 9), DENSE_BYTES))
    parts = dict.fromkeys(STEPS.values(), 0)
    parts["table of losses"] = table + work
    parts["second moments of public clips"] = parts["second moments of own clips"] = moments
    parts["rounding"] = moments + work + made.nbytes
    print(f"weights {size_words(weights)}, a set of moments {size_words(moments)}; before loading")
    print(f"{words(began)}; the file made has {size_words(made.nbytes)}\n")
    for step, beside in parts.items():
        expected = size_words(sum(began) + weights + beside)
        print(f"{step:31} {words(peaks[step]) if step in peaks else '-'}; parts {expected}")


def watch(thread: int, peaks: dict[str, tuple[int, int]], over: threading.Event) -> None:
    """Note the largest resident memory in each step until `over`."""
    while not over.is_set():
        frame, names = sys._current_frames().get(thread), set()
        while frame is not None:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        step = next((step for name, step in STEPS.items() if name in names), None)
        if step is not None:
            peaks[step] = max(peaks.get(step, (0, 0)), resident(), key=sum)
        time.sleep(POLL_S)


def resident() -> tuple[int, int]:
    """Return the bytes of this process's memory of its own, and of pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    own, files = (int(found[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return own, files


def words(peak: tuple[int, int]) -> str:
    """Return resident memory as text."""
    own, files = peak
    return f"{size_words(own + files)}: {size_words(own)} its own, {size_words(files)} of files"


if __name__ == "__main__":
    main()
