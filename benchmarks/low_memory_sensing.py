"""Sensing on a device that cannot hold the model in full precision: memory, time, agreement.

    python -m benchmarks.low_memory_sensing
    python -m benchmarks.low_memory_sensing --model cache:whisper-base --window-s 10 \\
        --speakers 3 --clips 4 --rounds 3      (needs python -m benchmarks.real_speech once)

Speakers are synthetic, as in benchmarks.plan_stability. Prints, for the model in full precision,
streamed from storage, and as a proxy of 8 bits:

- the peak bytes of weights in memory, computed; and by how much the resident memory of a separate
  process grows beyond what it takes without any layer's weight (Linux; weights, activations and
  samples of outputs together);
- the time relative to full precision, as the median of alternating rounds with files in the page
  cache (a seq2seq model first transcribes its clips, in the same mode), and the bytes read from
  storage;
- how close the proxy's sensitivities and plans are to those of full precision and, for comparison,
  how close another speaker's are.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.plan_stability import MEAN_BITS, budget_at, clips_of, sizes_of
from benchmarks.sensing import kept_elements
from fedsim.base.agreement import flip_share, rank_correlation
from fedsim.base.paths import resolve
from fedsim.base.units import MB
from fedsim.quant.allocation import allocate
from fedsim.quant.bank import BlobStore
from fedsim.quant.layers import leftovers
from fedsim.quant.memory import MODES, peak_bytes
from fedsim.quant.profile import profile_of
from fedsim.quant.proxy import pack_proxy, proxied
from fedsim.quant.sensitivity import sense
from fedsim.quant.stream import Reading, store_weights, streamed
from fedsim.quant.weights import PackedWeight
from fedsim.speech.models import load_model
from fedsim.speech.models.base import SpeechModel, own_tokens, tuning_batches

LANGUAGE = "en"
PARTS = ("transcribing", "sensing")
M_MMAP_THRESHOLD, MAPPED_BYTES = -3, 1 << 17
"""Makes glibc return freed blocks of 128 KiB or more, so that the peak is what is needed at once,
not what the allocator keeps (by default tens of MB, which differ between modes)."""
BUDGETS = tuple(np.arange(3, 7.01, 0.1).round(1).tolist())
"""Mean bit depths."""


@dataclass(frozen=True)
class Kept:
    """What a device stores for the modes other than full precision."""

    store: BlobStore
    names: Mapping[str, str]
    packed: Mapping[str, PackedWeight]

    def mode(self, model: SpeechModel, mode: str) -> AbstractContextManager[Reading | None]:
        """Return the context in which `model` runs in `mode`."""
        if mode == "streamed":
            return streamed(model, self.store, self.names)
        return proxied(model, self.packed) if mode == "proxy" else nullcontext()


@dataclass(frozen=True)
class Pass:
    """Seconds and bytes read of one device's transcribing and sensing, and the sensitivities."""

    seconds: tuple[float, float]
    read: tuple[int, int]
    values: np.ndarray


def sensed(model: SpeechModel, clips: list[np.ndarray], kept: Kept, mode: str) -> Pass:
    """Return the cost and the result of sensing `clips` in `mode`."""
    ends = [time.perf_counter()]
    read = []
    with kept.mode(model, mode) as reading:
        tokens = own_tokens(model, clips, LANGUAGE)
        ends.append(time.perf_counter())
        read.append(0 if reading is None else reading.bytes_read)
    with kept.mode(model, mode) as reading:
        values = sense(model, tuning_batches(model, clips, tokens, LANGUAGE))
        ends.append(time.perf_counter())
        read.append(0 if reading is None else reading.bytes_read)
    return Pass((ends[1] - ends[0], ends[2] - ends[1]), (read[0], read[1]), values)


def resident(key: str) -> int:
    """Return VmRSS (resident memory) or VmHWM (its peak) of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def grown(options: argparse.Namespace, folder: str, names: Mapping[str, str], mode: str) -> int:
    """Return by how many bytes this process grows at its peak while it senses in `mode`, compared
    with what it takes without any layer's weight."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
    model = load(options)
    clips, owners = clips_of(model, 0, options.clips), modules_of(model)
    packed = pack_proxy(weights_of(model), model.layers) if mode == "proxy" else {}
    for owner in owners.values():
        owner.weight.data = torch.empty(0)
    kept = Kept(BlobStore(Path(folder)), names, packed)
    sensed(model, clips[:1], kept, "streamed")  # lets libraries set themselves up
    settle()
    before = resident("VmRSS") - sum(p.nbytes for p in packed.values())
    if mode == "full":
        for layer in model.layers:
            weight = torch.empty(layer.shape)
            kept.store.fill(weight.numpy(), names[layer.name])
            owners[layer.name].weight.data = weight
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    sensed(model, clips, kept, mode)
    return resident("VmHWM") - before


def load(options: argparse.Namespace) -> SpeechModel:
    """Return the model that the command names."""
    return load_model(resolve(options.model, Path.cwd()), window_s=options.window_s, device="cpu")


def modules_of(model: SpeechModel) -> dict[str, Any]:
    """Return layer name -> the module that owns its weight."""
    modules = dict(model.module.named_modules())
    return {layer.name: modules[layer.name] for layer in model.layers}


def weights_of(model: SpeechModel) -> dict[str, torch.Tensor]:
    """Return layer name -> weight."""
    return {name: owner.weight.data for name, owner in modules_of(model).items()}


def settle() -> None:
    """Return freed memory to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def print_cost(
    options: argparse.Namespace, model: SpeechModel, clips: list[np.ndarray], kept: Kept
) -> None:
    """Print memory, time and bytes read of each mode."""
    rest = sum(t.nbytes for t in leftovers(model.module, model.layers).values())
    computed = peak_bytes(model.layers, leftovers(model.module, model.layers))
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        question = (options, str(kept.store.folder), kept.names)
        measured = {mode: rest + pool.apply(grown, (*question, mode)) for mode in MODES}
    passes = [
        {mode: sensed(model, clips, kept, mode) for mode in MODES} for _ in range(options.rounds)
    ]
    tokens = own_tokens(model, clips, LANGUAGE)
    samples = 4 * kept_elements(model, list(tuning_batches(model, clips, tokens, LANGUAGE)))
    parts = (1,) if tokens is None else (0, 1)
    print("| mode | weights MB, computed | peak MB, measured | beside weights MB ", end="")
    print("".join(f"| {PARTS[p]}: time / full | MB read " for p in parts) + "|")
    print("|---" * (4 + 2 * len(parts)) + "|")
    for mode in MODES:
        memory = (computed[mode], measured[mode], measured[mode] - computed[mode])
        cells = [f"{n / MB:.1f}" for n in memory]
        for part in parts:
            ratios = [p[mode].seconds[part] / p["full"].seconds[part] for p in passes]
            cells += [f"{statistics.median(ratios):.2f}", f"{passes[0][mode].read[part] / MB:.1f}"]
        print(f"| {mode} | " + " | ".join(cells) + " |")
    seconds = ", ".join(
        f"{PARTS[k]} {statistics.median(p['full'].seconds[k] for p in passes):.2f} s" for k in parts
    )
    largest = 4 * max(layer.n_weights for layer in model.layers)
    print(
        f"\nlargest layer {largest / MB:.2f} MB, leftovers {rest / MB:.2f} MB, samples of outputs "
        f"{samples / MB:.1f} MB; in full: {seconds}"
    )


def print_agreement(model: SpeechModel, spoken: list[list[np.ndarray]], kept: Kept) -> None:
    """Print how close streamed and proxy are to full precision."""
    found = {mode: [sensed(model, c, kept, mode).values for c in spoken] for mode in MODES}
    pairs = list(zip(found["proxy"], found["full"], strict=True))
    others = list(combinations(found["full"], 2))
    equal = sum(map(np.array_equal, found["streamed"], found["full"]))
    ranks = [rank_correlation(a[None], b) for a, b in pairs]
    print(f"\nstreamed: equal to full to the last bit for {equal} of {len(spoken)} speakers")
    print(
        f"proxy: rank correlation with full: mean {np.mean(ranks):.4f}, min {np.min(ranks):.4f}; "
        f"of two speakers in full: "
        f"{np.mean([rank_correlation(a[None], b) for a, b in others]):.4f}; relative change of a "
        f"sensitivity: median {100 * np.median([np.abs(a / b - 1) for a, b in pairs]):.2f} %\n"
    )
    sizes = sizes_of(model)
    print("| mean bits | layers whose depth the proxy changes | another speaker changes |")
    print("|---|---|---|")

    def plan(values: np.ndarray, bits: float) -> np.ndarray:
        budget = budget_at(model, sizes, bits)
        return np.array(allocate("myqasr", profile_of(values, "median"), sizes, budget))

    def share(both: list, bits: float) -> float:
        return 100 * np.mean([flip_share(plan(a, bits)[None], plan(b, bits)) for a, b in both])

    for bits in MEAN_BITS:
        print(f"| {bits} | {share(pairs, bits):.1f} % | {share(others, bits):.1f} % |")
    every = [[share(both, bits) for bits in BUDGETS] for both in (pairs, others)]
    ends = f"{BUDGETS[0]:g} to {BUDGETS[-1]:g}, {len(BUDGETS)} budgets: mean (max)"
    cells = [f"{np.mean(shares):.1f} ({max(shares):.1f}) %" for shares in every]
    print(f"| {ends} | " + " | ".join(cells) + " |\n")


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled:ctc")
    parser.add_argument("--window-s", type=float)
    parser.add_argument("--speakers", type=int, default=8)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load(options)
    spoken = [clips_of(model, k, options.clips) for k in range(options.speakers)]
    print(f"{options.model}, {len(model.layers)} layers, {options.speakers} speakers, ", end="")
    print(f"{options.clips} clips each")
    with tempfile.TemporaryDirectory() as folder:
        store = BlobStore(Path(folder))
        names = store_weights(weights_of(model), model.layers, store)
        kept = Kept(store, names, pack_proxy(weights_of(model), model.layers))
        print_agreement(model, spoken, kept)
        print_cost(options, model, spoken[0], kept)


if __name__ == "__main__":
    main()
