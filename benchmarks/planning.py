"""How long the server takes to turn 10,000 summaries into 10,000 plans.

    python -m benchmarks.planning [CLIENTS]

Prints the milliseconds per client for reading its summary, choosing bit depths and naming the
layers of its model, and the ratio of Algorithm 1's closed form to the loop given in the paper. Then
the same for plans by tables of losses, for bundled:ctc at 2 to 8 bits (41 x 7) and for layers as
large as those of Whisper base at 2 to 16 (99 x 15): each client with a table of its own, and all
clients with one public table; without and with cross terms. The tables are drawn.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from fedsim_server.planner import Planner

from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.quant.allocation import Sizes, allocate
from fedsim.quant.bank import BlobStore, LayerBank
from fedsim.quant.packing import packed_bytes
from fedsim.quant.profile import LayerProfile, profile_of
from fedsim.scenario.schema import Scenario
from fedsim.study.model import load_study_model
from fedsim.study.public_model import public_model

LOOPED = 200
OWN_TABLES = 200
WHISPER = (80 * 512 * 3, 512 * 512 * 3, *[512 * 512] * 72, *[512 * 2048] * 24, 51_865 * 512)


def main() -> None:
    """Run the measurement."""
    clients = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    scenario = Scenario.model_validate(
        {
            "name": "planning",
            "model": {"id": "bundled:ctc"},
            "corpus": {
                "kind": "voices",
                "group_by": "speaker",
                "population": {"speakers": clients},
            },
            "clients": {"budget_mb": 2.0},
            "methods": [{"allocation": "myqasr", "calibration": "minmax", "rounding": "nearest"}],
        }
    )
    study = load_study_model(scenario)
    layers, sizes, depths = study.model.layers, study.sizes, study.sizes.depths
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(size=(clients, len(layers))))
    budgets = rng.uniform(1.0 * 2**20, 4.0 * 2**20, clients).astype(int)
    records = [
        codec.to_record(m.Summary(f"c{i:05d}", int(b), depths, 4, tuple(v.tolist())))
        for i, (b, v) in enumerate(zip(budgets, values, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        weights, store = study.switch.full_weights(), BlobStore(Path(folder))
        bank = LayerBank(weights, layers, study.weight_format, store)
        public, full = public_model(scenario, study.model), study.switch.full_bytes()
        planner = Planner(scenario, sizes, bank, public, full)
        for bits in depths:  # each layer is packed once per depth, whatever the number of clients
            bank.manifest((bits,) * len(layers), "nearest")
        began = time.perf_counter()
        for record in records:
            planner.own(codec.from_record(m.Summary, record, "a client"))
        took = time.perf_counter() - began
    profiles = [profile_of(row, "median") for row in values[:LOOPED]]
    looped_clients = len(profiles)
    began = time.perf_counter()
    for profile, budget in zip(profiles, budgets, strict=False):
        allocate("myqasr", profile, sizes, int(budget))
    closed = (time.perf_counter() - began) / looped_clients
    began = time.perf_counter()
    for i in range(looped_clients):
        _looped(values[i], sizes, int(budgets[i]))
    looped = (time.perf_counter() - began) / looped_clients
    print(
        f"{clients:,} summaries to plans: {took:.2f} s, {1000 * took / clients:.3f} ms per client; "
        f"Algorithm 1 in closed form {1e6 * closed:.0f} us, as a loop {1e6 * looped:.0f} us, "
        f"ratio {closed / looped:.3f}"
    )
    whisper = np.array([[packed_bytes(n, depth) for depth in range(2, 17)] for n in WHISPER])
    _by_tables(sizes.restricted(range(2, 9)), clients)
    _by_tables(Sizes(tuple(range(2, 17)), whisper, 0), clients)


def _by_tables(sizes: Sizes, clients: int) -> None:
    """Time plans by tables of losses: few large ones, falling by a factor per bit, with noise."""
    rng, (layers, depths) = np.random.default_rng(0), sizes.layer_bytes.shape
    noise = rng.normal(0, 0.3, (OWN_TABLES, layers, depths))
    tables = np.exp(rng.normal(-6, 1.5, (layers, 1)) - 1.3 * np.arange(depths) + noise)
    moves = rng.normal(size=(layers, 1, 64)) + rng.normal(size=(layers, depths, 64))
    moves *= (np.sqrt(2 * tables[0]) / np.linalg.norm(moves, axis=-1))[..., None]
    moves = moves.reshape(-1, 64)
    own = [LayerProfile(table, "loss", sizes.depths) for table in tables]
    public = LayerProfile(tables[0], "loss", sizes.depths, moves @ moves.T / 2)
    ends = (sizes.total([depth] * layers) for depth in sizes.depths[:: depths - 1])
    budgets = rng.integers(*ends, clients).tolist()
    timed = []
    for allocation, profiles, of in (
        ("knapsack", own, budgets[:OWN_TABLES]),
        ("knapsack", [public] * clients, budgets),
        ("knapsack_pairs", [public], budgets[:1]),
        ("knapsack_pairs", [public] * clients, budgets),
    ):
        began = time.perf_counter()
        for profile, budget in zip(profiles, of, strict=False):
            allocate(allocation, profile, sizes, budget)
        timed.append(time.perf_counter() - began)
    alone, shared, prepared, pairs = timed
    print(
        f"{layers} x {depths}: knapsack {1000 * alone / OWN_TABLES:.2f} ms per client with a table "
        f"of its own; {clients:,} clients of one table {shared:.2f} s; knapsack_pairs "
        f"{prepared:.1f} s per table, then {clients:,} clients {pairs:.2f} s"
    )


def _looped(sensitivity: np.ndarray, sizes: Sizes, budget: int) -> list[int]:
    """Algorithm 1 as the paper gives it: lower one layer by one bit, until the model fits."""
    order = np.argsort(-sensitivity, kind="stable")
    columns = [len(sizes.depths) - 1] * len(order)
    total = sizes.fixed_bytes + int(sizes.layer_bytes[:, -1].sum())
    while total > budget:
        for layer in order:
            total -= int(
                sizes.layer_bytes[layer, columns[layer]]
                - sizes.layer_bytes[layer, columns[layer] - 1]
            )
            columns[layer] -= 1
            if total <= budget:
                break
    return [sizes.depths[c] for c in columns]


if __name__ == "__main__":
    main()
