"""What the server is told of each client's sensitivities, and what it makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedsim import messages as m
from fedsim.errors import FedsimError
from fedsim.privacy.bounds import Bounds
from fedsim.privacy.releases import READINGS, Terms, restore_rounds
from fedsim.results.ledger import Payload
from fedsim.results.rows import Sensed
from fedsim.scenario.privacy import COHORT
from fedsim.scenario.schema import Scenario
from fedsim.terms import release_terms
from server.replies import Refused

_NO_VALUES = ("ranks", "plan", "none")  # what these restore is no sensitivity


@dataclass
class Told:
    """The releases of clients under way, and the terms on which they are read."""

    scenario: Scenario
    terms: Terms
    payloads: dict[str, list[bytes]] = field(default_factory=dict)
    """Client -> its releases so far, of a client whose last round has not come."""
    profiles: dict[str, m.Summary] = field(default_factory=dict)
    """Client -> its latest summary, likewise."""

    @property
    def release(self) -> str:
        """What the scenario has released."""
        return self.scenario.privacy.release

    @property
    def epsilon(self) -> float | None:
        """What one release costs, None where no noise is added."""
        return self.scenario.privacy.epsilon if self.release == "noisy" else None

    def request(self, measure: str, number: int = 1) -> m.SenseRequest:
        """Return the request for a client's release of a round; `measure` may be empty."""
        alone = self.release in (COHORT, "none")  # a profile is all that one device tells
        bounds = None if alone else self.terms.bounds
        return m.SenseRequest(
            measure="" if alone else measure,
            quantiles=self.scenario.study and self.release == "values",
            round=number,
            low=() if bounds is None else tuple(bounds.low.tolist()),
            high=() if bounds is None else tuple(bounds.high.tolist()),
        )

    def check(self, asked: m.SenseRequest, answer: m.Summary) -> None:
        """Raise `Refused` for a summary whose payload is not what its release is."""
        who, size = f"client {answer.client!r}", len(answer.payload)
        if self.release == "values" or not asked.measure:
            if answer.payload:
                raise Refused(f"{who} sent a release of {size} bytes that nobody asked for")
            return
        try:
            restored = READINGS[self.release](answer.payload, self.terms)
        except FedsimError as error:
            raise Refused(f"{who}: {error}") from error
        if not np.isfinite(restored).all():
            raise Refused(f"{who} sent a release that is not finite")

    def take(self, asked: m.SenseRequest, answer: m.Summary) -> m.SenseRequest | None:
        """Take a summary in; return the request for the next round, None after the last."""
        client, said = answer.client, self.scenario.privacy
        if self.release == "noisy" and asked.measure:
            self.payloads.setdefault(client, []).append(answer.payload)
            self.profiles[client] = answer
            if asked.round < said.rounds:
                return self.request(asked.measure, asked.round + 1)
        elif answer.payload:
            self.payloads[client] = [answer.payload]
        return None

    def summary(self, client: str, answer: m.Summary | None = None) -> m.Summary | None:
        """Return a client's summary with the sensitivities that its releases stand for.

        Args:
            client: its key.
            answer: what it answered last; None where it declined: then what it had told before
                counts, and None is returned if that is nothing.
        """
        answer = self.profiles.pop(client, None) if answer is None else answer
        self.profiles.pop(client, None)
        if answer is None or self.release == "values":
            return answer
        if self.release == "none":
            return replace(answer, sensitivity=self._floats(READINGS["none"](b"", self.terms)))
        if client not in self.payloads:
            return answer
        restored = restore_rounds(self.release, self.payloads[client], self.terms)
        return replace(answer, sensitivity=self._floats(restored), payload=b"")

    def recorded(self, client: str, summary: m.Summary) -> tuple[Sensed, list[Payload]]:
        """Return what the ledger keeps of a client that finished; it is forgotten here."""
        known = () if self.release in _NO_VALUES else summary.sensitivity
        told = self.payloads.pop(client, [])
        if self.release in ("values", COHORT) and summary.sensitivity:
            told = [np.asarray(summary.sensitivity, "<f8").tobytes()]
        return Sensed(client, known, summary.quantiles), [
            Payload(client, number, self.release, payload)
            for number, payload in enumerate(told, start=1)
        ]

    @staticmethod
    def _floats(values: np.ndarray) -> tuple[float, ...]:
        return tuple(np.asarray(values, np.float64).tolist())


def told_by(scenario: Scenario, layers: int, bounds: Bounds | None) -> Told:
    """Return the empty state of a run's releases.

    Raises `FedsimError` for layers to be released that the model does not have.
    """
    chosen: Sequence[int] = scenario.privacy.layers or ()
    if scenario.privacy.release == "noisy" and max(chosen, default=0) >= layers:
        raise FedsimError(
            f"privacy.layers names layer {max(chosen)}, and the model has {layers}: layers count"
            f" from 0"
        )
    return Told(scenario, release_terms(scenario, layers, bounds))
