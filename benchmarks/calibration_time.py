"""What each calibration costs a device, for comparison with what it gains.

    python -m benchmarks.calibration_time RUN_FOLDER

RUN_FOLDER is a finished run, or a matrix of runs. Prints the seconds that each calibration of its
scenario takes per client (median over up to 8 clients, one thread) and their ratio to the time in
which full precision transcribes the same clips. Then writes the seconds into timing.json, from
which `fedsim report RUN_FOLDER` draws gain against seconds. `none` is timed like the others, though
its clips are public and a server could calibrate once for all clients.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch

from fedsim.base.files import write_text
from fedsim.quant.calibration import calibrate_layer
from fedsim.quant.calibrators import CALIBRATORS, needs
from fedsim.quant.observe import observe
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import dequantize_weight
from fedsim.results.bound import seal
from fedsim.results.folder import RunFolder
from fedsim.results.runs import read_runs
from fedsim.scenario.schema import Scenario
from fedsim.speech.clips import read_utterance
from fedsim.speech.corpus import open_clients
from fedsim.speech.models.base import (
    SpeechModel,
    own_tokens,
    public_signal,
    transcribe_clips,
    tuning_batches,
)
from fedsim.speech.public_model import AUTO
from fedsim.study.model import load_study_model

MAX_CLIENTS = 8
BITS = 5
"""Bit depth of the weights during a search; the time hardly depends on it."""


def seconds_of(
    model: SpeechModel, scenario: Scenario, clips: list, language: str | None, calibration: str
) -> float:
    """Return the seconds of one calibration: one observing pass, then a range for each layer."""
    clips = clips if CALIBRATORS[calibration].user_data else public_signal()
    tokens = own_tokens(model, clips, language)  # not timed: sensing has them already
    full, weight_format = switch_of(model).full_weights(), scenario.quantization.weight_format
    rounded = {
        layer.name: dequantize_weight(quantize_weight(full[layer.name], BITS, weight_format))
        for layer in model.layers
    }
    modules = dict(model.module.named_modules())
    wanted, bits = needs({calibration}), scenario.quantization.activation_bits
    start = time.perf_counter()
    batches = tuning_batches(model, clips, tokens, language)
    seen = observe(model, batches, rows=wanted.rows, fisher=wanted.fisher)
    for layer in model.layers:
        if layer.name in seen:
            calibrate_layer(
                calibration,
                layer,
                modules[layer.name],
                seen[layer.name],
                partial(rounded.__getitem__, layer.name),
                8 if bits == AUTO else int(bits),
            )
    return time.perf_counter() - start


def main() -> None:
    """Print the seconds and write them into the run's timing.json."""
    torch.set_num_threads(1)
    (run,) = read_runs([Path(sys.argv[1])])
    scenario = run.parts[0].scenario
    names = sorted({c for method in scenario.methods for c in method.calibration})
    model = load_study_model(scenario).model
    clients = open_clients(scenario.corpus, scenario.clients, scenario.seed)
    forward: list[float] = []
    taken: dict[str, list[float]] = {name: [] for name in names}
    for key in list(clients)[:MAX_CLIENTS]:
        data = clients[key]
        clips = [read_utterance(u, convert=scenario.corpus.convert) for u in data.tuning]
        transcribe_clips(model, clips[:1], data.language)  # warm
        start = time.perf_counter()
        transcribe_clips(model, clips, data.language)
        forward.append(time.perf_counter() - start)
        for name in names:
            taken[name].append(seconds_of(model, scenario, clips, data.language, name))
    base = statistics.median(forward)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    print(f"{len(forward)} clients, {scenario.corpus.tuning_clips} clips each; ", end="")
    print(f"full precision transcribes them in {base:.2f} s")
    for name, value in seconds.items():
        print(f"{name:8} {value:6.2f} s per client, {value / base:.2f} x that")
    for part in run.parts:
        timing = dict(part.timing) | {
            "calibration_seconds": {k: round(v, 4) for k, v in seconds.items()}
        }
        write_text(RunFolder(part.path).timing, json.dumps(timing, indent=2) + "\n")
        seal(RunFolder(part.path))


if __name__ == "__main__":
    main()
