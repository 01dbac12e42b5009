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
from fedsim.scenario.cells import LOSSES, measure_of
from fedsim.scenario.schema import Scenario
from fedsim.study.release_params import release_params
from fedsim_server.replies import Refused


@dataclass
class SummaryReader:
    """The releases of clients that have not finished, and the parameters to read them with."""

    scenario: Scenario
    params: ReleaseParams
    payloads: dict[str, list[bytes]] = field(default_factory=dict)
    """Client -> its releases so far, in the order of rounds."""
    latest: dict[str, m.Summary] = field(default_factory=dict)
    """Client -> its latest summary, until the last round."""

    @property
    def release(self) -> Release:
        """The release that the scenario chose."""
        return self.scenario.privacy.chosen

    @property
    def kind(self) -> str:
        """Its name."""
        return self.scenario.privacy.release

    @property
    def epsilon(self) -> float | None:
        """Privacy cost of one release; None where no noise is added."""
        return self.scenario.privacy.epsilon if self.release.adds_noise else None

    def request(self, measure: str, number: int = 1) -> m.SenseRequest:
        """Return the request for a client's release of round `number`; `measure` may be empty."""
        alone = self.release.make is not None  # else one device by itself releases nothing
        bounds = self.params.bounds if alone else None
        return m.SenseRequest(
            measure=measure if alone else "",
            quantiles=self.scenario.study and self.release.plain,
            round=number,
            low=() if bounds is None else tuple(bounds.low.tolist()),
            high=() if bounds is None else tuple(bounds.high.tolist()),
        )

    def check(self, request: m.SenseRequest, answer: m.Summary) -> None:
        """Raise `Refused` for a summary whose payload does not fit the scenario's release."""
        who, size = f"client {answer.client!r}", len(answer.payload)
        if self.release.plain or not request.measure:
            if answer.payload:
                raise Refused(f"{who} sent a release of {size} bytes that was not requested")
            return
        try:
            restored = self.release.read(answer.payload, self.params)
        except FedsimError as error:
            raise Refused(f"{who}: {error}") from error
        if not np.isfinite(restored).all():
            raise Refused(f"{who} sent a release that is not finite")

    def take(self, request: m.SenseRequest, answer: m.Summary) -> m.SenseRequest | None:
        """Keep a summary's release; return the request for the next round, None after the last."""
        client = answer.client
        if self.release.adds_noise and request.measure:
            self.payloads.setdefault(client, []).append(answer.payload)
            self.latest[client] = answer
            if request.round < self.scenario.privacy.rounds:
                return self.request(request.measure, request.round + 1)
        elif answer.payload:
            self.payloads[client] = [answer.payload]
        return None

    def summary(self, client: str, answer: m.Summary | None = None) -> m.Summary | None:
        """Return a client's summary with the profile that its releases stand for.

        Args:
            client: its key.
            answer: its last answer; None where it declined. Its earlier releases then count, and
                None is returned if there are none.
        """
        latest = self.latest.pop(client, None)
        answer = latest if answer is None else answer
        if answer is None or self.release.plain:
            return answer
        if self.release.gives == "public":
            restored = self.release.read(b"", self.params)
            return replace(answer, sensitivity=_floats(restored), depths=self._columns)
        if client not in self.payloads:
            return answer
        restored = restore(self.kind, self.payloads[client], self.params)
        depths = () if self.release.gives == "plan" else self._columns
        return replace(answer, sensitivity=_floats(restored), payload=b"", depths=depths)

    @property
    def _columns(self) -> tuple[int, ...]:
        """Bit depths of the columns of a table of losses; empty for one value per layer."""
        return self.scenario.clients.bit_depths if measure_of(self.scenario) == LOSSES else ()

    def recorded(self, client: str, summary: m.Summary) -> tuple[Sensed, list[Payload]]:
        """Remove and return what the ledger keeps of the releases of a client that finished."""
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
    """Return the reader of a run's releases, which holds none.

    Raises `FedsimError` for layers to be released that the model does not have.
    """
    return SummaryReader(scenario, release_params(scenario, layers, bounds))


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(np.asarray(values, np.float64).tolist())
