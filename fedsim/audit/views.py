"""What the server sees of each client, as vectors that attacks take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedsim.base.seeds import client_rng
from fedsim.privacy.bounds import Bounds
from fedsim.privacy.release_params import ReleaseParams
from fedsim.privacy.releases import RELEASES, release, view
from fedsim.privacy.secure_aggregation.codes import decode, encode
from fedsim.scenario.schema import Scenario

Payloads = Sequence[bytes]
"""What one client released, one payload per round; of a group, its mean."""


def vectors(kind: str, released: Sequence[Payloads], params: ReleaseParams) -> np.ndarray:
    """Return the releases of n clients as float64 (n, d), nothing of them lost.

    Values in the logarithm where all are positive, noisy ones as they came and averaged over
    rounds, quantized ones as steps, ranks as places, plans as bit depths.

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
    """Return what a client would release of its sensitivities (L,), one payload a round.

    Noise is drawn for `purpose`, apart from that of any run.
    """
    kind, rounds = scenario.privacy.release, scenario.privacy.rounds_of_device
    rngs = (client_rng(scenario.seed, client, f"{purpose} {i}") for i in range(1, rounds + 1))
    return [release(kind, sensitivity, params, rng).payload for rng in rngs]


def released_in_groups(
    groups: Sequence[Sequence[str]], sensitivities: Mapping[str, np.ndarray], bounds: Bounds
) -> dict[str, Payloads]:
    """Return the mean of its group for each client, to the byte."""
    found: dict[str, Payloads] = {}
    for group in groups:
        codes = np.array([encode(sensitivities[client], bounds) for client in group])
        mean = decode(codes.sum(axis=0), len(group), bounds).astype("<f8").tobytes()
        found |= {client: [mean] for client in group}
    return found
