"""State of one process, shared by all clients it plays: the loaded model and caches.

Every cache may be lost, with the process or by eviction, without changing a result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from fedsim.base.accelerators import find_device, set_deterministic
from fedsim.base.cache import LRUCache
from fedsim.errors import FedsimError, nearest
from fedsim.protocol.run_config import RunConfig
from fedsim.quant.allocation import ALLOCATORS
from fedsim.quant.bank import BlobStore, WeightCache
from fedsim.quant.formats import FORMATS
from fedsim.quant.memory import MODES, choose_mode
from fedsim.quant.model import device_of
from fedsim.quant.proxy import pack_proxy, proxied
from fedsim.quant.stream import Reading, store_weights, streamed
from fedsim.quant.weights import PackedWeight
from fedsim.scenario.cells import all_cells
from fedsim.scenario.schema import Scenario, scenario_from_json
from fedsim.speech.clips import ClientData, Clients
from fedsim.speech.corpus import open_clients
from fedsim.speech.models.base import SpeechModel
from fedsim.speech.public_model import PublicModel
from fedsim.speech.public_set import PublicSet, read_public_set
from fedsim.study.by_language import KEPT, StudyModels, open_study_models
from fedsim.study.devices import Devices
from fedsim.study.groups import clients_per_batch, kept_bytes
from fedsim.study.model import StudyModel, sensing_peaks
from fedsim.study.vocabulary import TrimmedModels, trimmed_models
from fedsim_clients.reading import ClipReader

REMEMBERED = 256
"""Results cached (pseudo-labels, ranges): some 100 kB each at most."""
GROUPS = 8
"""Groups of clients whose small results are cached; a worker plays one after the other."""

CLIP_BYTES = 16 << 20
"""Bytes of clips cached: four minutes. A client's clips are read when it senses, and by some
calibrations again."""

PRIMITIVES = 512
"""oneDNN primitives (compiled convolutions and the like) cached, some twelve per batch length. The
default is 1,024, which unpadded models use up. oneDNN reads the variable once, at its first
primitive."""

OBSERVATION_BYTES = 256 << 20
"""Bytes of layer statistics cached: cosine calibration of a Whisper base takes some 50 MB per
client."""


@dataclass
class Runtime:
    """One scenario's model, clients and caches in this process."""

    scenario: Scenario
    models: StudyModels
    """The model by client language."""
    study: StudyModel
    """That of the clients that are played."""
    clients: Clients
    devices: Devices
    weights: WeightCache
    run_dir: Path
    trimmed: TrimmedModels
    """The same, with the tokens of any client language."""
    clients_per_batch: int = 1
    """Neighbours in the list of clients whose clips share forward passes."""
    clips: ClipReader = field(default_factory=lambda: ClipReader(CLIP_BYTES))
    """Clips of clients that have begun and not finished."""
    observations: LRUCache[Any] = field(
        default_factory=lambda: LRUCache(OBSERVATION_BYTES, REMEMBERED)
    )
    """`LayerObservations` of clients, or groups of them, that have sensed and not calibrated."""
    moments: LRUCache[Any] = field(default_factory=lambda: LRUCache(OBSERVATION_BYTES, REMEMBERED))
    """`Moments` of clients, or groups of them, that have sensed and not rounded."""
    rounded: LRUCache[Any] = field(default_factory=lambda: LRUCache(OBSERVATION_BYTES, REMEMBERED))
    """Layers that devices rounded, of clients that have not been tested."""
    results: LRUCache[Any] = field(default_factory=lambda: LRUCache(max_values=REMEMBERED))
    """Small results that `remember` keeps."""
    groups: LRUCache[LRUCache[Any]] = field(default_factory=lambda: LRUCache(max_values=GROUPS))
    """Place of a group of clients -> small results that they share, in all languages."""
    _places: dict[str, str] = field(default_factory=dict)
    _others: LRUCache[Runtime] = field(default_factory=lambda: LRUCache(max_values=KEPT))
    """Language -> the runtime of clients that speak it."""

    def of(self, language: str | None) -> Runtime:
        """Return the runtime of clients that speak `language`: this one, unless the model differs.

        Caches of single clients are shared. Raises `FedsimError` if the model has no such language.
        """
        if not self.models.languages:
            return self

        def make() -> Runtime:
            study = self.models.load(language)
            return replace(
                self,
                study=study,
                trimmed=trimmed_models(self.scenario, study),
                results=LRUCache(max_values=REMEMBERED),
                _places={},
            )

        return self._others.get(language, make)

    @property
    def model(self) -> SpeechModel:
        """The full-precision model."""
        return self.study.model

    @property
    def speaks(self) -> bool:
        """Whether model files differ by the client's language, which the server then must know."""
        return bool(self.models.languages or self.scenario.model.vocabulary)

    def data(self, key: str) -> ClientData:
        """Return the clips of a client."""
        found: ClientData = self.remember(("data", key), lambda: self.clients[key])
        return found

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """All clients, in the order of the scenario."""
        return tuple(self.clients)

    @cached_property
    def places(self) -> dict[str, int]:
        """Client key -> its place among all clients."""
        return {key: i for i, key in enumerate(self.keys)}

    def mode(self, key: str) -> str:
        """Return the mode in which a client's device holds the full-precision model.

        Raises `FedsimError` where its memory is too small for every mode.
        """
        fleet, memory = self.scenario.fleet, self.devices[key].memory_bytes
        if fleet is None or memory is None:
            return "full"
        mode = choose_mode(self.peaks, memory, fleet.sensing)
        if mode is None:
            raise FedsimError(
                f"client {key!r}: its device has {memory:,} bytes of memory, and sensing takes "
                f"{self.peaks['streamed']:,} even layer by layer, with activations of "
                f"{fleet.clip_s:g} s; give it more memory, a smaller model, or a smaller"
                f" fleet.clip_s"
            )
        return mode

    def remember(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what `make` returned for `key`; it is called again after eviction."""
        return self.results.get(key, make)

    def public(self, name: str) -> PublicModel:
        """Return what follows from the model and the public clips of this name in the bank."""

        def clips() -> PublicSet:
            return read_public_set(self.weights.store.get(name))

        threads = self.scenario.engine.threads
        return self.remember(("public", name), lambda: PublicModel(self.model, clips, threads))

    def sensing(self, mode: str) -> AbstractContextManager[Reading | None]:
        """Return a context in which the model computes as on a device that senses in `mode`.

        Modes are `fedsim.quant.memory.MODES`; the context of "streamed" yields what was read from
        storage. Raises `FedsimError` for an unknown mode.
        """
        match mode:
            case "full":
                return nullcontext()
            case "streamed":
                return streamed(self.model, self.weights.store, self._stored())
            case "proxy":
                return proxied(self.model, self._packed_proxy)
        raise FedsimError(f"there is no sensing mode {mode!r}: {nearest(mode, MODES)}")

    @cached_property
    def drawn(self) -> frozenset[str]:
        """Labels of the methods whose plans are drawn at random."""
        cells = all_cells(self.scenario)
        return frozenset(c.label for c in cells if ALLOCATORS[c.allocation].is_random)

    @cached_property
    def peaks(self) -> dict[str, int]:
        """Sensing mode -> peak bytes of memory; only for a scenario with a fleet."""
        return sensing_peaks(self.scenario, self.study)

    @cached_property
    def traced(self) -> Any:
        """The network in the format of the scenario's files, for the weights of any plan."""
        chosen = FORMATS[self.scenario.clients.format]
        return chosen.trace(self.model, self.study.leftovers)

    def _stored(self) -> dict[str, str]:
        """Store the full-precision layers in the run's bank, once; return layer name -> blob name.

        They are stored again where the bank is gone: it is removed when a run ends, and this
        process may serve the resumed run.
        """
        store = self.weights.store
        if not self._places or any(name not in store for name in self._places.values()):
            self._places = store_weights(self.study.switch.full_weights(), self.model.layers, store)
        return self._places

    @cached_property
    def _packed_proxy(self) -> dict[str, PackedWeight]:
        return pack_proxy(self.study.switch.full_weights(), self.model.layers)


@lru_cache(maxsize=1)
def open_runtime(run_config: RunConfig) -> Runtime:
    """Load the scenario's model and client list, once per process."""
    scenario = scenario_from_json(run_config.scenario)
    # In Flower's own processes nothing else sets it, and sums would differ in the last bit.
    torch.set_num_threads(scenario.engine.threads)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))
    set_deterministic(find_device(scenario.engine.device, where="engine.device"))
    models = open_study_models(scenario)
    study = models.first
    together = clients_per_batch(scenario, study.model) if run_config.one_process else 1
    kept = together * kept_bytes(scenario, study.model) if together > 1 else 0
    clients = open_clients(
        scenario.corpus, scenario.clients, scenario.seed, scenario.text_normalizer
    )
    return Runtime(
        trimmed=trimmed_models(scenario, study),
        scenario=scenario,
        models=models,
        study=study,
        clients=clients,
        devices=Devices(scenario, list(clients)),
        weights=WeightCache(BlobStore(run_config.bank_dir), device=device_of(study.model)),
        run_dir=run_config.run_dir,
        clients_per_batch=together,
        # Of this group and the next, since nothing is to be computed twice.
        clips=ClipReader(together * CLIP_BYTES),
        observations=LRUCache(max(OBSERVATION_BYTES, 2 * kept), REMEMBERED),
        moments=LRUCache(max(OBSERVATION_BYTES, 2 * kept), REMEMBERED),
        groups=LRUCache(max_values=max(GROUPS, REMEMBERED // together)),
    )
