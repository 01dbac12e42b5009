"""What one process keeps for all the clients it plays: the loaded model, layers, a few small
results.

Everything here is a cache: losing it, with the process or with age, changes no result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.assignment import Assignment
from fedsim.base.cache import LRUCache
from fedsim.errors import FedsimError, nearest
from fedsim.quant import modelfile
from fedsim.quant.allocation import Sizes
from fedsim.quant.bank import BlobStore, WeightCache
from fedsim.quant.memory import MODES
from fedsim.quant.observe import SeenLayers
from fedsim.quant.proxy import pack_proxy, proxied
from fedsim.quant.stream import Reading, store_weights, streamed
from fedsim.quant.switch import Switch, switch_of
from fedsim.quant.weights import PackedWeight
from fedsim.scenario.clients import Devices
from fedsim.scenario.schema import Scenario, scenario_from_json
from fedsim.speech.corpus import Clients, open_clients
from fedsim.speech.models.base import SpeechModel
from fedsim.study import load_study_model, model_manifest, sensing_peaks

REMEMBERED = 256
"""Results remembered of clients (pseudo-labels, ranges): some 100 kB each at most."""

CLIP_BYTES = 16 << 20
"""Of clips kept: four minutes. Those of a client are read when it senses, and by some calibrations
again."""

PRIMITIVES = 512
"""Convolutions and the like that torch keeps compiled (by oneDNN), for each length of a batch some
twelve. Its own number is 1,024, which models whose batches are not padded fill. It is read at the
first."""

SEEN_BYTES = 256 << 20
"""Of what layers saw: some 50 MB a client for cosine calibration of a Whisper base."""


@dataclass
class Workbench:
    """One scenario's model, clients and caches in this process."""

    scenario: Scenario
    model: SpeechModel
    switch: Switch
    stored: dict[str, torch.Tensor]
    """Leftovers as a model file stores them."""
    leftovers: dict[str, torch.Tensor]
    """Leftovers as the model computes with them."""
    sizes: Sizes
    clients: Clients
    devices: Devices
    weights: WeightCache
    run_dir: Path
    clips: LRUCache[np.ndarray] = field(default_factory=lambda: LRUCache(CLIP_BYTES))
    """Clips by their key, of clients that are under way."""
    seen: LRUCache[SeenLayers] = field(default_factory=lambda: LRUCache(SEEN_BYTES, REMEMBERED))
    """What layers saw of clips, of clients between sensing and calibrating."""
    _places: dict[str, str] = field(default_factory=dict)
    _small: LRUCache[Any] = field(default_factory=lambda: LRUCache(max_values=REMEMBERED))

    def remember(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what `make` returned for `key`; it is made again once forgotten."""
        return self._small.get(key, make)

    def sensing(self, mode: str) -> AbstractContextManager[Reading | None]:
        """Return the context in which the model answers as a device holds it that senses in `mode`.

        The modes are those of `fedsim.quant.memory`; a streamed model's context gives what was read
        from storage. Raises `FedsimError` for an unknown mode.
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
    def modules(self) -> dict[str, torch.nn.Module]:
        """Layer name -> its module."""
        found = dict(self.model.module.named_modules())
        return {layer.name: found[layer.name] for layer in self.model.layers}

    @cached_property
    def peaks(self) -> dict[str, int]:
        """Sensing mode -> the most bytes that are in memory at once; the scenario has a fleet."""
        return sensing_peaks(self.scenario, self.model, self.leftovers)

    def _stored(self) -> dict[str, str]:
        """Return where the full-precision layers lie in the run's bank, which has them once.

        The bank goes when a run ends, and a resumed one may find this workbench as it was.
        """
        store = self.weights.store
        if not self._places or any(name not in store for name in self._places.values()):
            self._places = store_weights(self.switch.full_weights(), self.model.layers, store)
        return self._places

    @cached_property
    def _packed_proxy(self) -> dict[str, PackedWeight]:
        return pack_proxy(self.switch.full_weights(), self.model.layers)


@lru_cache(maxsize=1)
def open_workbench(assignment: Assignment) -> Workbench:
    """Load the scenario's model and client list, once per process."""
    scenario = scenario_from_json(assignment.scenario)
    # Where the process is Flower's, nobody else has; sums would differ in the last bit.
    torch.set_num_threads(scenario.engine.threads)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))
    model = load_study_model(scenario)
    switch = switch_of(model)
    stored = modelfile.store_leftovers(switch.full_leftovers())
    depths = scenario.clients.bit_depths
    manifest = model_manifest(scenario, model, ())
    clients = open_clients(scenario.corpus, scenario.clients, scenario.seed)
    return Workbench(
        scenario=scenario,
        model=model,
        switch=switch,
        stored=stored,
        leftovers=modelfile.load_leftovers(stored),
        sizes=modelfile.model_sizes(model.layers, stored, manifest, depths),
        clients=clients,
        devices=Devices(scenario, list(clients)),
        weights=WeightCache(BlobStore(assignment.bank_dir)),
        run_dir=assignment.run_dir,
    )
