"""The memory that a run takes at most, from the shapes of its model: no clip passes through it.

Activations, caches of clips, statistics and layers, and libraries come on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedsim.base.accelerators import CPU, CUDA, cuda_cards, find_device, first_card
from fedsim.quant.bank import CACHE_BYTES
from fedsim.quant.footprint import moment_bytes, packed_in_memory, rounding_bytes, table_bytes
from fedsim.quant.moments import moment_shapes
from fedsim.quant.rounding import ROUNDINGS
from fedsim.runner.engine_choice import choose_engine, engine_settings, n_workers
from fedsim.scenario.cells import Cell, all_cells
from fedsim.scenario.matrix import expand
from fedsim.scenario.schema import Scenario
from fedsim.speech.public_model import DENSE_BYTES
from fedsim.study.by_language import open_study_models
from fedsim.study.clients import client_keys
from fedsim.study.groups import clients_within, statistics_bytes
from fedsim.study.model import StudyModel

STEPS = ("record", "measure", "round", "test")
"""What a process does one after another: record second moments, measure a table of losses, round
weights, test a model. The server tests nothing."""
PARTS = WEIGHTS, OWN, PUBLIC, TABLE, ROUNDING, TESTED = (
    "full-precision weights",
    "second moments of clients' clips",
    "second moments of public clips",
    "weights for a table of losses",
    "rounding",
    "model that is tested",
)
"""Names of what a process holds."""


@dataclass(frozen=True)
class Part:
    """Bytes that a process holds on the host and on its GPU, in some steps."""

    name: str
    host: int
    gpu: int
    steps: tuple[str, ...] = STEPS


@dataclass(frozen=True)
class ProcessMemory:
    """What one process holds."""

    parts: tuple[Part, ...]

    def peak(self, name: str | None = None) -> tuple[int, int]:
        """Return the most bytes that it holds in any step, of one part or all: host and GPU."""
        chosen = [part for part in self.parts if name in (None, part.name)]
        steps = [[part for part in chosen if step in part.steps] for step in STEPS]
        hosts = (sum(part.host for part in step) for step in steps)
        gpus = (sum(part.gpu for part in step) for step in steps)
        return max(hosts), max(gpus)

    def idle(self) -> tuple[int, int]:
        """Return the bytes that it holds in every step."""
        kept = [part for part in self.parts if part.steps == STEPS]
        return sum(part.host for part in kept), sum(part.gpu for part in kept)


@dataclass(frozen=True)
class RunMemory:
    """What all processes of a run hold, at most."""

    worker: ProcessMemory
    server: ProcessMemory
    workers: int
    device: str
    """What they compute on: cpu, cuda or mps."""
    in_one_process: bool
    """Whether one process is the server and plays the clients."""
    per_gpu: int
    """Workers that share a GPU, beside the server."""
    memory_share: float
    """The part of a GPU's memory that a worker may take."""
    card: tuple[str, int] | None
    """Name and bytes of the GPU that is here; None if there is none, or none is asked for."""

    def host(self) -> int:
        """Return the bytes of host memory of all processes."""
        worker, server = self.worker.peak()[0], self.server.peak()[0]
        if self.in_one_process:
            return max(worker + self.server.idle()[0], server + self.worker.idle()[0])
        return self.workers * worker + server

    def fits(self) -> bool | None:
        """Return whether the GPU that is here has room for the server and its workers, each in its
        share; None if there is none."""
        if self.card is None:
            return None
        worker, size = self.worker.peak()[1], self.card[1]
        return self.gpu() <= size and worker <= self.memory_share * size

    def gpu(self) -> int:
        """Return the bytes of the memory of the GPU that the server uses, too."""
        worker, server = self.worker.peak()[1], self.server.peak()[1]
        if self.in_one_process:
            return max(worker + self.server.idle()[1], server + self.worker.idle()[1])
        return min(self.workers, self.per_gpu) * worker + server


def memory_of(scenario: Scenario) -> RunMemory:
    """Load the scenario's model on the processor and return what a run takes; of a matrix, its
    first combination.

    A GPU that the scenario asks for need not be there. Raises `FedsimError` for a model that cannot
    be loaded, and clients that cannot be found.
    """
    first = expand(scenario)[0].scenario
    asked = first.engine.device
    absent = asked == CUDA and not cuda_cards()
    device = asked if absent else find_device(asked, where="engine.device")
    on_cpu = first.engine.model_copy(update={"device": CPU})
    study = open_study_models(first.model_copy(update={"engine": on_cpu})).first
    clients = len(client_keys(first))
    settings = engine_settings(first.engine.model_copy(update={"device": device}))
    kind = first.engine.kind if absent else choose_engine([(first, clients)])
    workers = settings.workers or settings.workers_per_gpu if absent else n_workers(first.engine)
    share = settings.memory_share or 1.0
    card = None if absent or not device.startswith(CUDA) else first_card()
    together = first.engine.clients_per_batch or 1
    if first.engine.clients_per_batch is None and card is not None:
        together = clients_within(int(share * card[1]), statistics_bytes(study.model))
    worker, server = process_memory(first, study, min(together, clients), gpu=device != CPU)
    return RunMemory(
        worker,
        server,
        1 if kind == "inprocess" else min(workers, clients),
        device,
        kind == "inprocess",
        settings.workers_per_gpu,
        share,
        card,
    )


def process_memory(
    scenario: Scenario, study: StudyModel, together: int = 1, *, gpu: bool
) -> tuple[ProcessMemory, ProcessMemory]:
    """Return what a worker holds, and what the server does; `gpu` says that both compute on one,
    `together` how many clients share passes."""
    cells = all_cells(scenario)
    own = [cell for cell in cells if cell.rounded_by_device]
    packed = [cell for cell in cells if not cell.rounded_by_device]
    full = _placed(WEIGHTS, study.switch.full_bytes(), gpu=gpu)
    worker, server = [full], [full]
    moments = moment_bytes(moment_shapes(study.model))
    if own:
        # Cached, of these clients or those before.
        worker.append(Part(OWN, together * moments, 0))
        worker.append(_recorded(OWN, together * moments, gpu=gpu))
    if any(_reads_public(cell) for cell in cells):
        server.append(_recorded(PUBLIC, moments, gpu=gpu))
    for parts, whose in ((worker, "own"), (server, "public")):
        if any(cell.losses == whose for cell in cells):
            parts += _table(scenario, study, gpu=gpu)
    tabled = [cell for cell in cells if cell.losses == "public"]
    worker += _rounding(scenario, study, own, gpu=gpu)
    server += _rounding(scenario, study, packed, tabled, gpu=gpu)
    if cells:
        worker += _tested(study, gpu=gpu)
    return ProcessMemory(tuple(worker)), ProcessMemory(tuple(server))


def _reads_public(cell: Cell) -> bool:
    """Return whether a cell needs second moments of public clips."""
    table = cell.losses == "public" and ROUNDINGS[cell.rounding].reads_moments
    return table or cell.moments in ("public", "blend")


def _placed(name: str, size: int, steps: tuple[str, ...] = STEPS, *, gpu: bool) -> Part:
    """Return a part that lies where the model computes."""
    return Part(name, 0 if gpu else size, size if gpu else 0, steps)


def _recorded(name: str, moments: int, *, gpu: bool) -> Part:
    """Return moments while they are recorded; a GPU's are brought to the host at the end."""
    return Part(name, moments, moments if gpu else 0, ("record",))


def _table(scenario: Scenario, study: StudyModel, *, gpu: bool) -> Iterator[Part]:
    how, depths = study.weight_format, scenario.clients.bit_depths
    packed, dense = table_bytes(study.model.layers, how, depths, DENSE_BYTES)
    yield Part(TABLE, packed, 0, ("measure",))
    yield _placed(TABLE, dense, ("measure",), gpu=gpu)


def _rounding(
    scenario: Scenario,
    study: StudyModel,
    cells: list[Cell],
    tabled: list[Cell] | None = None,
    *,
    gpu: bool,
) -> Iterator[Part]:
    """Yield what rounding takes: for models, whose packed layers stay, and for a table."""
    layers, shapes = study.model.layers, moment_shapes(study.model)
    for chosen, step in ((cells, "round"), (tabled or [], "measure")):
        if chosen:
            reads = any(ROUNDINGS[cell.rounding].reads_moments for cell in chosen)
            read, work = rounding_bytes(layers, shapes, reads_moments=reads, gpu=gpu)
            yield Part(ROUNDING, read, 0, (step,))
            yield _placed(ROUNDING, work, (step,), gpu=gpu)
    if cells:
        deepest = max(scenario.clients.bit_depths)
        packed = packed_in_memory(layers, study.weight_format, deepest)
        yield Part(ROUNDING, packed, 0, ("round", "test"))


def _tested(study: StudyModel, *, gpu: bool) -> Iterator[Part]:
    """Yield a delivered model, its layers unpacked, and those of others that are cached."""
    layers = study.model.layers
    dense = 4 * sum(layer.n_weights for layer in layers)
    rest = sum(tensor.nbytes for tensor in study.leftovers.values())
    yield _placed(TESTED, dense + rest, ("test",), gpu=gpu)
    yield _placed(TESTED, min(CACHE_BYTES, dense), gpu=gpu)
    if not gpu:  # codes for products of integers
        yield Part(TESTED, sum(x.n_weights for x in layers if x.kind == "linear"), 0, ("test",))
