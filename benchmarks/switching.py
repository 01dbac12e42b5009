"""How long a process takes to switch from one client's Whisper base to another's.

    python -m benchmarks.switching            (needs python -m benchmarks.real_speech once)

Two clients have plans around 4.5 bits; the process's cache holds their layers, dequantized. Prints
the median time of a switch and its ratio to the time of loading the full-precision model.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.fixtures import whisper_base
from fedsim.quant import modelfile
from fedsim.quant.activations import InputFormat, Range
from fedsim.quant.bank import BlobStore, LayerBank, WeightCache
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.switch import switch_of

ROUNDS = 50
FORMAT = WeightFormat("per_channel")


def main() -> None:
    """Run the measurement."""
    torch.set_num_threads(2)
    start = time.perf_counter()
    model = whisper_base()
    loading = time.perf_counter() - start
    switch = switch_of(model)
    leftovers = modelfile.load_leftovers(modelfile.store_leftovers(switch.full_leftovers()))
    plans = [tuple(4 + (i + client) % 2 for i in range(len(model.layers))) for client in (0, 1)]
    inputs = {layer.name: InputFormat(8, Range(-4.0, 4.0)) for layer in model.layers}
    with tempfile.TemporaryDirectory() as folder:
        store = BlobStore(Path(folder))
        bank = LayerBank(switch.full_weights(), model.layers, FORMAT, store)
        cache = WeightCache(store)
        manifests = [bank.manifest(plan, "nearest") for plan in plans]

        def change(client: int) -> float:
            start = time.perf_counter()
            found = {
                layer.name: cache.layer(name, layer, bits, FORMAT)
                for layer, name, bits in zip(
                    model.layers, manifests[client], plans[client], strict=True
                )
            }
            weights = {name: unpacked.weight for name, unpacked in found.items()}
            integers = {name: unpacked.integers for name, unpacked in found.items()}
            switch.install(weights, leftovers, inputs, integers)
            return time.perf_counter() - start

        cold = change(0) + change(1)
        warm = statistics.median(change(i % 2) for i in range(ROUNDS))
    print(
        f"switch with layers in the cache: {1000 * warm:.2f} ms (median of {ROUNDS}); both "
        f"clients' layers read and unpacked the first time: {cold:.2f} s; loading the model: "
        f"{loading:.2f} s; ratio switch / load {warm / loading:.5f}"
    )


if __name__ == "__main__":
    main()
