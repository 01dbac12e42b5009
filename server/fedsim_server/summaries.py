"""Collects the releases of each client and reconstructs its layer profile."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from fedsim.errors import FedsimError
from fedsim.privacy.bounds import Bounds
from fedsim.privacy.release_params import ReleaseParams
from fedsim.privacy.releases import Release, restore
from fedsim.protocol import messages as m
from fedsim.results.records import Payload
from fedsim.results.rows import Sensed
from fedsim.scenario.schema import Scenario
from fedsim.study.release_params import release_params
from fedsim_server.replies import Refused


@dataclass
class SummaryReader:
    """The releases of clients under way, and the parameters with which they are read."""

    scenario: Scenario
    params: ReleaseParams
    payloads: dict[str, list[bytes]] = field(default_factory=dict)
    """Client -> its releases so far, of a client whose last round has not come."""
    latest: dict[str, m.Summary] = field(default_factory=dict)
    """Client -> its latest summary, likewise."""

    @property
    def release(self) -> Release:
        """What the scenario has released."""
        return self.scenario.privacy.chosen

    @property
    def kind(self) -> str:
        """Its name."""
        return self.scenario.privacy.release

    @property
    def epsilon(self) -> float | None:
        """What one release costs, None where no noise is added."""
        return self.scenario.privacy.epsilon if self.release.adds_noise else None

    def request(self, measure: str, number: int = 1) -> m.SenseRequest:
        """Return the request for a client's release of a round; `measure` may be empty."""
        alone = self.release.make is not None  # else a device by itself sends its facts only
        bounds = self.params.bounds if alone else None
        return m.SenseRequest(
            measure=measure if alone else "",
            quantiles=self.scenario.study and self.release.plain,
            round=number,
            low=() if bounds is None else tuple(bounds.low.tolist()),
            high=() if bounds is None else tuple(bounds.high.tolist()),
        )

    def check(self, asked: m.SenseRequest, answer: m.Summary) -> None:
        """Raise `Refused` for a summary whose payload is not what its release is."""
        who, size = f"client {answer.client!r}", len(answer.payload)
        if self.release.plain or not asked.measure:
            if answer.payload:
                raise Refused(f"{who} sent a release of {size} bytes that nobody asked for")
            return
        try:
            restored = self.release.read(answer.payload, self.params)
        except FedsimError as error:
            raise Refused(f"{who}: {error}") from error
        if not np.isfinite(restored).all():
            raise Refused(f"{who} sent a release that is not finite")

    def take(self, asked: m.SenseRequest, answer: m.Summary) -> m.SenseRequest | None:
        """Take a summary in; return the request for the next round, None after the last."""
        client = answer.client
        if self.release.adds_noise and asked.measure:
            self.payloads.setdefault(client, []).append(answer.payload)
            self.latest[client] = answer
            if asked.round < self.scenario.privacy.rounds:
                return self.request(asked.measure, asked.round + 1)
        elif answer.payload:
            self.payloads[client] = [answer.payload]
        return None

    def summary(self, client: str, answer: m.Summary | None = None) -> m.Summary | None:
        """Return a client's summary with the profile that its releases stand for.

        Args:
            client: its key.
            answer: what it answered last; None where it declined: then what it had released before
                counts, and None is returned if that is nothing.
        """
        latest = self.latest.pop(client, None)
        answer = latest if answer is None else answer
        if answer is None or self.release.plain:
            return answer
        if self.release.gives == "public":
            restored = self.release.read(b"", self.params)
            return replace(answer, sensitivity=_floats(restored))
        if client not in self.payloads:
            return answer
        restored = restore(self.kind, self.payloads[client], self.params)
        return replace(answer, sensitivity=_floats(restored), payload=b"")

    def recorded(self, client: str, summary: m.Summary) -> tuple[Sensed, list[Payload]]:
        """Return what the ledger keeps of a client that finished; it is forgotten here."""
        has_values = self.release.gives == "values"
        values = summary.sensitivity if has_values else ()
        payloads = self.payloads.pop(client, [])
        if (self.release.plain or self.release.grouped) and summary.sensitivity:
            payloads = [np.asarray(summary.sensitivity, "<f8").tobytes()]
        sensed = Sensed(client, values, summary.quantiles, summary.depths if has_values else ())
        return sensed, [
            Payload(client, number, self.kind, payload)
            for number, payload in enumerate(payloads, start=1)
        ]


def summary_reader(scenario: Scenario, layers: int, bounds: Bounds | None) -> SummaryReader:
    """Return the empty state of a run's releases.

    Raises `FedsimError` for layers to be released that the model does not have.
    """
    return SummaryReader(scenario, release_params(scenario, layers, bounds))


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(np.asarray(values, np.float64).tolist())
