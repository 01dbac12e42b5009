"""The server's view of each client, as vectors for attacks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsim.audit.voices import Voices
from fedsim.base.seeds import client_rng
from fedsim.errors import FedsimError
from fedsim.privacy.bounds import Bounds
from fedsim.privacy.release_params import ReleaseParams
from fedsim.privacy.releases import RELEASES, Release, release, view
from fedsim.privacy.secure_aggregation.codes import decode, encode
from fedsim.privacy.secure_aggregation.groups import make_groups
from fedsim.quant.allocation import Sizes
from fedsim.scenario.schema import Scenario
from fedsim.study.devices import Devices
from fedsim.study.release_params import device_planner, release_params

Payloads = Sequence[bytes]
"""What one client released, one payload per round; for a member of a group, the mean."""


def vectors(kind: str, released: Sequence[Payloads], params: ReleaseParams) -> np.ndarray:
    """Return the releases of n clients as float64 (n, d), without any loss.

    Values are in the logarithm if all are positive, noisy ones unclipped and averaged over rounds,
    quantized ones steps, ranks are ranks, and plans bit depths.

    Raises `FedsimError` for a payload that does not fit the parameters.
    """
    chosen = RELEASES[kind]
    if chosen.gives == "public":
        return np.zeros((len(released), 1))
    rows = np.array(
        [np.mean([view(kind, payload, params) for payload in one], axis=0) for one in released]
    )
    exact = chosen.gives == "values" and chosen.view is None
    return np.log(rows) if exact and (rows > 0).all() else rows


def released_alone(
    scenario: Scenario, params: ReleaseParams, client: str, sensitivity: np.ndarray, purpose: str
) -> Payloads:
    """Return what a client would release of its sensitivities (L,), one payload per round.

    Noise is drawn for `purpose`, so it differs from that of any run.
    """
    kind, rounds = scenario.privacy.release, scenario.privacy.rounds_of_device
    rngs = (client_rng(scenario.seed, client, f"{purpose} {i}") for i in range(1, rounds + 1))
    return [release(kind, sensitivity, params, rng).payload for rng in rngs]


def released_in_groups(
    groups: Sequence[Sequence[str]], sensitivities: Mapping[str, np.ndarray], bounds: Bounds
) -> dict[str, Payloads]:
    """Return for each client the mean of its group, as exact as in a run."""
    found: dict[str, Payloads] = {}
    for group in groups:
        codes = np.array([encode(sensitivities[client], bounds) for client in group])
        mean = decode(codes.sum(axis=0), len(group), bounds).astype("<f8").tobytes()
        found |= {client: [mean] for client in group}
    return found


@dataclass(frozen=True)
class View:
    """The server's view of the clients of one scenario without a matrix."""

    scenario: Scenario
    voices: Voices
    bounds: Bounds | None
    sizes_of: Callable[[str | None], Sizes]
    """f(client language) -> those of its model files, for a device that makes its own plan."""
    keys: tuple[str, ...]
    """Keys of the clients under attack, sorted."""
    released: Mapping[str, Payloads] | None = None
    """What each released in a run; None without a run: it is then computed."""

    @property
    def release(self) -> str:
        """Name of the release."""
        return self.scenario.privacy.release

    @property
    def chosen(self) -> Release:
        """The registry entry of the release."""
        return self.scenario.privacy.chosen

    def params(self, client: str = "") -> ReleaseParams:
        """Return the parameters of releases; with `client`, also the planner of its device."""
        layers = self.voices.layers
        if not client:
            return release_params(self.scenario, layers, self.bounds)
        limits = Devices(self.scenario, list(self.voices.clients))[client]
        sizes = self.sizes_of(self.voices.clients[client].language)
        plan = device_planner(self.scenario, sizes, limits)
        return release_params(self.scenario, layers, self.bounds, plan)

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Groups of a cohort: in a run, clients with the same mean; else those that it would draw.

        A group with fewer than `cohort.min_members` members that finished is left out.
        """
        if not self.chosen.grouped:
            return ()
        cohort = self.scenario.privacy.cohort
        if self.released is None:
            drawn = make_groups(list(self.voices.clients), cohort.size, self.scenario.seed)
        else:
            of_mean: defaultdict[bytes, list[str]] = defaultdict(list)
            for key in self.keys:
                of_mean[b"".join(self.released[key])].append(key)
            drawn = list(of_mean.values())
        return tuple(tuple(group) for group in drawn if len(group) >= cohort.min_members)

    def repeatable(self) -> tuple[str, ...]:
        """Return the clients whose releases can be computed again.

        Raises `FedsimError` if there are none: too few members of a cohort may have finished.
        """
        if not self.chosen.grouped:
            return self.keys
        members = {key for group in self.groups for key in group}
        found = tuple(key for key in self.keys if key in members)
        if not found:
            cohort = self.scenario.privacy.cohort
            raise FedsimError(
                f"{len(self.keys)} clients finished, and no group of {cohort.size} has the"
                f" {cohort.min_members} of privacy.cohort.min_members among them; run more clients,"
                f" or lower privacy.cohort.size"
            )
        return found

    def session(
        self, sense: Callable[[Sequence[str]], Mapping[str, np.ndarray]], purpose: str
    ) -> dict[str, Payloads]:
        """Return what each of the repeatable clients would release of what `sense` returns.

        Raises `FedsimError` if there are none, and as `sense` does.
        """
        keys = self.repeatable()
        if self.chosen.grouped:
            assert self.bounds is not None
            groups = [group for group in self.groups if set(group) & set(keys)]
            values = sense([key for group in groups for key in group])
            return released_in_groups(groups, values, self.bounds)
        values = sense(keys)
        return {
            key: released_alone(
                self.scenario, self.params(key), key, values[key], f"audit {purpose}"
            )
            for key in keys
        }

    def matrix(self, released: Mapping[str, Payloads], keys: Sequence[str]) -> np.ndarray:
        """Return the vectors of clients (n, d), in the order of `keys`."""
        return vectors(self.release, [released.get(key, ()) for key in keys], self.params())

    def rng(self, attack: str) -> np.random.Generator:
        """Return the generator of an attack, which is the same for every release."""
        return client_rng(self.scenario.seed, "", f"audit {attack}")
