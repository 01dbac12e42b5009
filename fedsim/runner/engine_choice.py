"""Which engine `auto` means: this process where that ends sooner than Ray starts, else Ray.

Ray and its workers take some seconds to start, in which one process already works; then several
workers catch up. A run of little work, or on one core, is over before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedsim.base.accelerators import CPU, CUDA, cuda_cards, find_device
from fedsim.base.paths import BUNDLED_PREFIX, bundled_folder
from fedsim.base.units import MB
from fedsim.engine import EngineSettings
from fedsim.engine.settings import cores, max_workers
from fedsim.scenario.cells import forward_passes
from fedsim.scenario.engine import AUTO, MAX_GROUP, EngineChoice
from fedsim.scenario.schema import Scenario

START_S = 8.0
"""Seconds that Ray and its workers take to start and end beyond what one process takes."""
PASS_S_PER_MB = 0.005
"""Seconds of one clip's pass through a model, per MB of its checkpoint: bundled:ctc takes 29 ms for
5.7 MB with all that a client does around it, Whisper base 0.3 to 0.9 s for 139 MB."""
_UNKNOWN_MB = 1_000.0  # a checkpoint that is not on this machine yet: no small matter


def choose_engine(runs: Sequence[tuple[Scenario, int]]) -> str:
    """Return the engine on which runs of one engine section go one after another.

    Args:
        runs: scenarios, each with its number of clients.

    Returns:
        A name of the registry `fedsim.engine.ENGINES`.
    """
    engine = runs[0][0].engine
    if engine.kind != AUTO:
        return engine.kind
    if engine.address is not None:
        return "ray"
    workers = n_workers(engine)
    saved = 0.0
    for scenario, clients in runs:
        passes = forward_passes(scenario, clients)
        seconds = passes * PASS_S_PER_MB * _checkpoint_mb(scenario.model.id)
        saved += seconds * (1 - 1 / max(1, min(workers, clients)))
    return "ray" if saved > START_S else "inprocess"


def on_its_device(scenario: Scenario) -> Scenario:
    """Return the scenario with the device that its engine computes on, in place of "auto".

    Raises `FedsimError` for a device that is not on this machine.
    """
    device = find_device(scenario.engine.device, where="engine.device")
    engine = scenario.engine.model_copy(update={"device": device})
    return scenario.model_copy(update={"engine": engine})


def engine_settings(engine: EngineChoice, shared: Path | None = None) -> EngineSettings:
    """Return the settings of an engine whose device is known; `shared` as in `EngineSettings`."""
    return EngineSettings(
        engine.workers,
        engine.threads,
        engine.address,
        shared=shared,
        device=engine.device,
        workers_per_gpu=engine.workers_per_gpu,
        group=engine.clients_per_batch or (MAX_GROUP if engine.device.startswith(CUDA) else 1),
    )


def n_workers(engine: EngineChoice) -> int:
    """Return how many workers Ray starts on this machine if there are as many clients."""
    if engine.workers is not None:
        return engine.workers
    device = find_device(engine.device, where="engine.device")
    settings = engine_settings(engine.model_copy(update={"device": device}))
    gpus = 0 if device == CPU else len(cuda_cards())
    return max(1, max_workers(settings, cores(), gpus))


def with_chosen_engine(runs: Sequence[tuple[Scenario, int]], scenario: Scenario) -> Scenario:
    """Return the scenario with the engine on which these runs go, by its name."""
    engine = scenario.engine.model_copy(update={"kind": choose_engine(runs)})
    return scenario.model_copy(update={"engine": engine})


def _checkpoint_mb(model: str) -> float:
    """Return the size of a checkpoint's weights on this disk."""
    folder = bundled_folder(model) if model.startswith(BUNDLED_PREFIX) else Path(model)
    files = [f for f in folder.glob("*") if f.suffix in (".safetensors", ".bin")]
    return sum(f.stat().st_size for f in files) / MB if files else _UNKNOWN_MB
