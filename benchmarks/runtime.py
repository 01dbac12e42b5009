"""Milliseconds of onnxruntime for one product, by bit depth and shape of the layer, on one thread.

    python -m benchmarks.runtime [--frames 1 150] [--turns 15]

Layers are as `fedsim export` writes them, with a scale and a zero point for every 128 inputs, at
onnxruntime's accuracy level 4, its default, and at 0. All depths take turns, so that whatever else
the machine does falls on each of them; each number is the median of the turns, of which each takes
the fastest of several runs, in processor time of the thread. The last lines say how many times as
fast as 8 bits each depth is: the geometric mean over the shapes, and the smallest and largest.
`fedsim/fleet/catalogue.yaml` takes its ratios from those of 150 frames, three seconds of audio.
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from fedsim.export.onnx_graph import OPSET, fill, skeleton
from fedsim.export.onnx_session import options
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.rounding.independent import quantize_weight

SHAPES = ((192, 192), (192, 768), (768, 192), (512, 512), (512, 2048), (2048, 512), (768, 3072))
"""(inputs, outputs) of linear layers: of bundled:ctc, of Whisper base, one of wav2vec2-base."""
DEPTHS = (2, 4, 6, 8)
FLOAT = 32
LEVELS = (4, 0)
WEIGHTS = WeightFormat("group_128", True)
RUNS = 5


def sessions(k: int, n: int) -> dict[tuple[int, int], onnxruntime.InferenceSession]:
    """Return (bit depth, accuracy level) -> a session of one product x (T, k) -> (T, n)."""
    weight = np.random.default_rng(0).normal(size=(n, k)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["t", n])],
        [numpy_helper.from_array(weight.T.copy(), "w")],
    )
    traced = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    files = {(FLOAT, 0): traced.SerializeToString()}
    bare = skeleton(traced, [weight])
    for bits, level in itertools.product(DEPTHS, LEVELS):
        packed = quantize_weight(torch.from_numpy(weight), bits, WEIGHTS)
        files[bits, level] = fill(bare, [packed]).SerializeToString()
    return {
        key: onnxruntime.InferenceSession(data, options(key[1]), ["CPUExecutionProvider"])
        for key, data in files.items()
    }


def milliseconds(k: int, n: int, frames: int, turns: int) -> dict[tuple[int, int], float]:
    """Return (bit depth, accuracy level) -> milliseconds of one product."""
    opened = sessions(k, n)
    x = np.random.default_rng(1).normal(size=(frames, k)).astype(np.float32)
    times: dict[tuple[int, int], list[float]] = {key: [] for key in opened}
    for _ in range(turns):
        for key, session in opened.items():
            session.run(None, {"x": x})
            runs = []
            for _ in range(RUNS):
                began = time.thread_time()
                session.run(None, {"x": x})
                runs.append(time.thread_time() - began)
            times[key].append(1000 * min(runs))
    return {key: float(np.median(found)) for key, found in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 150])
    parser.add_argument("--turns", type=int, default=15)
    chosen = parser.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}, one thread, milliseconds")
    columns = [(FLOAT, 0), *((bits, level) for level in LEVELS for bits in reversed(DEPTHS))]
    heads = ["float32", *(f"{bits} bits, level {level}" for bits, level in columns[1:])]
    print("| frames | inputs | outputs | " + " | ".join(heads) + " |")
    print("|---" * (3 + len(heads)) + "|")
    for frames in chosen.frames:
        gains: dict[tuple[int, int], list[float]] = {key: [] for key in columns}
        for k, n in SHAPES:
            found = milliseconds(k, n, frames, chosen.turns)
            cells = " | ".join(f"{found[key]:.3f}" for key in columns)
            print(f"| {frames} | {k} | {n} | {cells} |", flush=True)
            for bits, level in columns:
                base = found[8, LEVELS[0] if bits == FLOAT else level]
                gains[bits, level].append(base / found[bits, level])
        print_gains(frames, gains)


def print_gains(frames: int, gains: dict[tuple[int, int], list[float]]) -> None:
    """Print how many times as fast as 8 bits each depth is."""
    print(f"\n{frames} frames: times as fast as 8 bits at the same level (float32: at level 4)")
    for (bits, level), values in gains.items():
        name = "float32" if bits == FLOAT else f"{bits} bits, level {level}"
        mean = float(np.exp(np.mean(np.log(values))))
        print(f"{name:16} {mean:.2f}  ({min(values):.2f} to {max(values):.2f})")
    print()


if __name__ == "__main__":
    main()
