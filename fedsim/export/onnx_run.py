"""Running an exported recognizer with nothing but numpy and onnxruntime, in a process of its own.

    python -m fedsim.export.onnx_run FOLDER CLIPS.npz LEVEL

Prints one JSON object: transcripts, the seconds of audio and of work, and the peak memory of the
process in bytes before the model is loaded, once it is, and at the end. One thread; each clip by
itself. `LEVEL` is onnxruntime's accuracy level for products with packed weights: 0 computes with
inputs in float32, 4, its default, with inputs rounded to 8 bits.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.export import run_whisper

NO_ANSWER = 3
"""Exit code of a program whose last line on stderr is a sentence for the user."""


def main() -> None:
    """Run the command line."""
    folder, clips, level = Path(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    provider = ["CPUExecutionProvider"]

    def session(name: str) -> Any:
        return onnxruntime.InferenceSession(str(folder / name), options, provider)

    is_whisper = (folder / run_whisper.ENCODER).exists()
    load = run_whisper.opened if is_whisper else opened
    measure(lambda: load(folder, session), clips, fills_window=is_whisper)


def measure(
    load: Callable[[], Callable[[np.ndarray], str]],
    clips: Mapping[str, np.ndarray],
    *,
    fills_window: bool,
) -> None:
    """Load a model, transcribe clips with it and print the report.

    Args:
        load: returns what transcribes a clip.
        clips: float32 (samples,) each.
        fills_window: whether every clip fills a window of the same length.
    """
    at_start = peak_bytes()
    transcribe = load()
    loaded = peak_bytes()
    transcripts, audio, work = [], 0.0, 0.0
    planned = set()
    for clip in clips.values():
        length = 0 if fills_window else len(clip)
        if length not in planned:  # the first pass of a length plans its memory
            transcribe(clip)
            planned.add(length)
        began = time.perf_counter()
        transcripts.append(transcribe(clip))
        work += time.perf_counter() - began
        audio += len(clip) / 16_000
    report = {
        "transcripts": transcripts,
        "audio_s": audio,
        "work_s": work,
        "start_bytes": at_start,
        "loaded_bytes": loaded,
        "peak_bytes": peak_bytes(),
    }
    print(json.dumps(report))


def opened(folder: Path, session: Callable[[str], Any]) -> Callable[[np.ndarray], str]:
    """Return what transcribes a clip, float32 (samples,), with a CTC recognizer."""
    model, tokens = session("model.onnx"), vocabulary(folder)

    def transcribe(clip: np.ndarray) -> str:
        inputs = {"input_values": clip[None], "input_lengths": np.array([len(clip)])}
        (logprobs,) = model.run(None, inputs)
        return decode(logprobs[0].argmax(axis=-1), tokens)

    return transcribe


def vocabulary(folder: Path) -> list[str]:
    """Return the token of each number; the blank is empty."""
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines]
    tokens = {int(number): token for token, number in pairs}
    special = {"<blk>": "", "\u2581": " "}
    return [special.get(tokens[i], tokens[i]) for i in range(len(tokens))]


def decode(best: np.ndarray, tokens: list[str]) -> str:
    """Return the greedy transcript: repeats merged, blanks dropped."""
    changed = np.flatnonzero(np.diff(best, prepend=-1))
    return "".join(tokens[i] for i in best[changed]).strip()


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    try:  # what getrusage gives on Linux is at least the parent's
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
