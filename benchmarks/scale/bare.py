"""What a run is measured against: its forward passes alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.scale.runs import THREADS, WORKERS


def bare_loop(study: Path, processes: int = WORKERS, linears: str = "fedsim") -> float:
    """Return the seconds that `bare` takes in this many processes."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.scale", "bare", str(study)]
    parts = [
        subprocess.Popen([*command, f"{part}/{processes}", linears], env={**os.environ, **THREADS})
        for part in range(processes)
    ]
    assert [part.wait() for part in parts] == [0] * processes
    return time.perf_counter() - began


def bare(study: str, part: str, linears: str = "fedsim") -> None:
    """Read the clips and run the forward passes of a part of the clients, such as 0/2.

    For each client, one pass in full precision over its tuning clips, and one over its test clips
    with a model of 4 bits and 8-bit activations, which stays installed. Linear layers are computed
    as fedsim does (those of the delivered model in integers, where that is faster), or as torch
    does, from dequantized floats.
    """
    import torch
    from torch import nn

    from fedsim.quant.activations import InputFormat, Range
    from fedsim.quant.granularities import PER_CHANNEL
    from fedsim.quant.integers import integers_of
    from fedsim.quant.rounding.independent import quantize_weight
    from fedsim.quant.switch import switch_of
    from fedsim.quant.weights import dequantize_weight
    from fedsim.scenario import load_scenario
    from fedsim.speech.clips import read_utterance
    from fedsim.speech.corpus import open_clients
    from fedsim.speech.models.base import transcribe_clips, tuning_batches
    from fedsim.study.model import load_study_model

    torch.set_num_threads(1)
    scenario = load_scenario(study)
    clients = open_clients(scenario.corpus, scenario.clients, scenario.seed)
    model, delivered = (load_study_model(scenario).model for _ in range(2))
    if linears == "torch":
        for module in [*model.module.modules(), *delivered.module.modules()]:
            if isinstance(module, nn.Linear):
                module.__class__ = nn.Linear
    switch = switch_of(delivered)
    full = switch.full_weights()
    packed = {
        layer: quantize_weight(full[layer.name], 4, PER_CHANNEL) for layer in delivered.layers
    }
    weights = {layer.name: dequantize_weight(p) for layer, p in packed.items()}
    integers = {layer.name: integers_of(layer, p) for layer, p in packed.items()}
    inputs = {name: InputFormat(8, Range(-8.0, 8.0)) for name in weights}
    switch.install(
        weights, switch.full_leftovers(), inputs, integers if linears == "fedsim" else None
    )
    first, step = map(int, part.split("/"))
    for key in list(clients)[first::step]:
        client = clients[key]
        tuning, test = ([read_utterance(u) for u in us] for us in (client.tuning, client.test))
        with torch.inference_mode():
            for batch in tuning_batches(model, tuning, None):
                model.forward(batch)
            transcribe_clips(delivered, test)
