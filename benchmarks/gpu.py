"""What a GPU is worth: sensing beside the bare forward, a fleet beside full batches, and the whole
method beside two cores.

    python -m benchmarks.gpu                           (bundled:ctc)
    python -m benchmarks.gpu --model openai/whisper-small

Prints the card and the versions of what computes on it, then ratios of times taken in turns in this
process, as medians: sensing all layers to the bare forward of the same batches (the aim: at most
1.25); sensing a fleet, in groups of clients that share passes as a run would form them, to the same
forwards in full batches (the aim for 1,000 clients of bundled:ctc: at most 1.5), and client by
client; personalizing on two threads of the processor to personalizing
on the GPU (the aim for Whisper small: at least 10). `--device cpu` shows that it runs, and nothing
about a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from fedsim.base.accelerators import CUDA, deterministic, device_facts, find_device
from fedsim.personal import personalize
from fedsim.quant.model import Batch
from fedsim.quant.sensitivity import Sensing, sense
from fedsim.scenario.engine import MAX_GROUP
from fedsim.speech.models import load_model
from fedsim.speech.models.base import SpeechModel, own_tokens, public_signal, tuning_batches
from fedsim.speech.together import Clips, joins, sense_together

FULL = 64
"""Clips of a full batch."""
EACH = 4
"""Clips of a client."""
TWO_CORES = 2


def timed(run: Callable[[], object], device: str) -> float:
    """Return the seconds until `run`, and what it left to the GPU, is done."""
    wait = torch.cuda.synchronize if device.startswith(CUDA) else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def in_turns(runs: Sequence[Callable[[], object]], device: str, rounds: int) -> list[float]:
    """Return the median seconds of each, taken in turns after one warm-up."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds + 1):
        for run, taken in zip(runs, times, strict=True):
            taken.append(timed(run, device))
    return [statistics.median(taken[1:]) for taken in times]


def batches_of(model: SpeechModel, clips: Sequence[np.ndarray]) -> list[Batch]:
    """Return the clips as batches for a forward pass, where the model is."""
    tokens = own_tokens(model, clips, "en")
    return [replace(b, alone=False) for b in tuning_batches(model, clips, tokens, "en")]


@torch.inference_mode()
def forward(model: SpeechModel, batches: Sequence[Batch]) -> None:
    """Run the bare forward pass."""
    for batch in batches:
        model.forward(batch)


def sensing(model: SpeechModel, device: str, seconds: float, rounds: int) -> None:
    """Print what sensing costs beside the bare forward."""
    batches = batches_of(model, public_signal(seconds, n=4 * model.batch_size))
    runs = [lambda: forward(model, batches), lambda: sense(model, batches)]
    bare, sensed = in_turns(runs, device, rounds)
    print(f"sensing / bare forward      {sensed / bare:8.2f}   ({bare:.3f} s bare)", flush=True)


def fleet(device: str, clients: int, rounds: int) -> None:
    """Print what sensing each client, in groups and apart, costs beside the same forwards in full
    batches."""
    model = load_model("bundled:ctc", device=device)
    clips = public_signal(2.0, n=EACH)
    full = replace(model, batch_size=FULL)
    together = batches_of(full, clips * (FULL // EACH))
    passes = -(-clients * EACH // FULL)

    def apart() -> None:
        for _ in range(clients):
            sense(model, tuning_batches(model, clips, None))

    def in_groups() -> None:
        for first in range(0, clients, MAX_GROUP):
            group = [Clips(clips)] * min(MAX_GROUP, clients - first)
            sense_together(model, group, Sensing("median"), [], joined=joins(model))

    def at_once() -> None:
        for _ in range(passes):
            forward(full, together)

    bare, grouped, sensed = in_turns([at_once, in_groups, apart], device, rounds)
    bare *= clients * EACH / (passes * FULL)  # the last batch is full too
    print(
        f"fleet of {clients:,} / full batches {grouped / bare:6.2f}   ({bare:.3f} s full)\n"
        f"the same, client by client  {sensed / bare:8.2f}",
        flush=True,
    )


def whole(name: str, device: str, seconds: float, budget_mb: float) -> None:
    """Print how much faster the whole method is than on two cores."""
    clips, public = public_signal(seconds, n=10), public_signal(seconds, n=8)

    def run(where: str) -> Callable[[], object]:
        model = load_model(name, device=where)
        return lambda: personalize(
            model, clips, budget_mb=budget_mb, public_clips=public, losses="own", language="en"
        )

    torch.set_num_threads(TWO_CORES)
    (slow,) = in_turns([run("cpu")], "cpu", 1)
    (fast,) = in_turns([run(device)], device, 3)
    print(f"two cores / this device     {slow / fast:8.2f}   ({fast:.3f} s here)", flush=True)


def main() -> None:
    """Parse the options and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="bundled:ctc", help="for sensing and the whole method")
    parser.add_argument("--budget-mb", type=float, default=1.6)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each clip")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = find_device(options.device, where="--device")
    print(f"torch {torch.__version__} on {device_facts(device)}")
    with deterministic(device):
        model = load_model(options.model, device=device)
        sensing(model, device, options.seconds, options.rounds)
        del model
        fleet(device, options.clients, options.rounds)
        whole(options.model, device, options.seconds, options.budget_mb)


if __name__ == "__main__":
    main()
