"""What the server sees of each client, as vectors that attacks take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedsim.base.seeds import client_rng
from fedsim.privacy.bounds import Bounds
from fedsim.privacy.cohort.codes import decode, encode
from fedsim.privacy.digits import unpack_digits
from fedsim.privacy.releases import READINGS, Terms, release
from fedsim.scenario.privacy import COHORT
from fedsim.scenario.schema import Scenario

Told = Sequence[bytes]
"""What one client released, one payload a round; of a cohort the mean of its group."""


def vectors(kind: str, told: Sequence[Told], terms: Terms) -> np.ndarray:
    """Return the releases of n clients as float64 (n, d), nothing of them lost.

    Values in the logarithm where all are positive, noisy ones as they came and averaged over
    rounds, quantized ones as steps, ranks as places, plans as bit depths.

    Raises `FedsimError` for a payload that does not fit the terms.
    """
    if kind == "none":
        return np.zeros((len(told), 1))
    rows = np.array([np.mean([_row(kind, p, terms) for p in one], axis=0) for one in told])
    return np.log(rows) if kind in ("values", COHORT) and (rows > 0).all() else rows


def _row(kind: str, payload: bytes, terms: Terms) -> np.ndarray:
    match kind:
        case "quantized":
            codes = unpack_digits(payload, (1 << terms.bits,) * terms.layers)
            return np.asarray(codes, np.float64)
        case "noisy":
            return np.frombuffer(payload, "<f4").astype(np.float64)
        case _:
            reading = READINGS["values" if kind == COHORT else kind]
            return reading(payload, terms).astype(np.float64)


def told_alone(
    scenario: Scenario, terms: Terms, client: str, sensitivity: np.ndarray, purpose: str
) -> Told:
    """Return what a client would release of its sensitivities (L,), one payload a round.

    Noise is drawn for `purpose`, apart from that of any run.
    """
    said = scenario.privacy
    rounds = said.rounds if said.release == "noisy" else 1
    rngs = (client_rng(scenario.seed, client, f"{purpose} {i}") for i in range(1, rounds + 1))
    return [release(said.release, sensitivity, terms, rng).payload for rng in rngs]


def told_in_groups(
    groups: Sequence[Sequence[str]], sensitivities: Mapping[str, np.ndarray], bounds: Bounds
) -> dict[str, Told]:
    """Return the mean of its group for each client, to the byte."""
    found: dict[str, Told] = {}
    for group in groups:
        codes = np.array([encode(sensitivities[client], bounds) for client in group])
        mean = decode(codes.sum(axis=0), len(group), bounds).astype("<f8").tobytes()
        found |= {client: [mean] for client in group}
    return found
