"""From summaries to candidates: which models each client is sent, and which it tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product

from fedsim.base.seeds import client_rng
from fedsim.errors import BudgetError, FedsimError
from fedsim.protocol import messages as m
from fedsim.quant.allocation import ALLOCATORS, Sizes, allocate
from fedsim.quant.bank import LayerBank
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.scenario.cells import Cell, all_cells, cells_of, sources
from fedsim.scenario.methods import FULL_PRECISION, NOBODY
from fedsim.scenario.schema import Scenario


@dataclass(frozen=True)
class Planner:
    """Plans from exact sizes, and names the packed layers of each plan."""

    scenario: Scenario
    sizes: Sizes
    """At every bit depth that the scenario allows."""
    bank: LayerBank
    _restricted: dict[tuple[int, ...], Sizes] = field(default_factory=dict)

    def candidate(self, cell: Cell, client: m.Summary, source: m.Summary) -> m.Candidate:
        """Return the model of `cell` for `client`'s budget, tuned on `source`'s summary.

        Raises `BudgetError`, naming the client, when its budget is infeasible.
        """
        settings = self.scenario.quantization
        reads = ALLOCATORS[cell.allocation].reads != "nothing"
        rng = client_rng(self.scenario.seed, source.client, f"shuffled-{cell.draw}")
        try:
            if reads and self.scenario.privacy.chosen.gives == "plan":
                bits = self.devices_plan(source.sensitivity, client.budget_bytes)
            else:
                bits = allocate(
                    cell.allocation,
                    source.profile(settings.sensitivity),
                    self._sizes_at(client.bit_depths),
                    client.budget_bytes,
                    order=cell.order,
                    rng=rng,
                )
        except BudgetError as error:
            raise BudgetError(f"client {client.client!r}: {error}") from error
        except FedsimError as error:
            raise FedsimError(f"client {source.client!r}: {error}") from error
        nobody = not reads and not CALIBRATORS[cell.calibration].user_data
        names = self.bank.manifest(bits)
        return m.Candidate(
            name=cell.label,
            calibration=cell.calibration,
            tuned_on=NOBODY if nobody else source.client,
            bits=bits,
            blobs=bytes.fromhex("".join(names)),
        )

    def devices_plan(self, depths: tuple[float, ...], budget: int) -> tuple[int, ...]:
        """Return the plan that a device made itself; `BudgetError` if it does not fit."""
        bits = tuple(int(depth) for depth in depths)
        size = self.sizes.total(bits)
        if size > budget:
            raise BudgetError(
                f"the plan that it made takes {size:,} bytes, more than its budget of {budget:,}"
            )
        return bits

    def _sizes_at(self, depths: tuple[int, ...]) -> Sizes:
        """Return the table of sizes with the bit depths that a client's runtime executes."""
        if depths not in self._restricted:
            self._restricted[depths] = self.sizes.restricted(depths)
        return self._restricted[depths]

    def own(self, client: m.Summary) -> tuple[m.Candidate, ...]:
        """Return every model that is tuned on the client's own clips."""
        return tuple(self.candidate(cell, client, client) for cell in all_cells(self.scenario))

    def tested(
        self,
        client: m.Summary,
        summaries: Mapping[str, m.Summary],
        ranges: Mapping[str, Mapping[str, tuple[float, ...]]],
        clients: list[str],
    ) -> tuple[tuple[m.Candidate, ...], str]:
        """Return the models that a client tests, and why some cannot be had, else "".

        `ranges` are the activation ranges that other clients returned: client -> cell label ->
        values. `clients` are the keys of all clients, sorted.
        """
        candidates: dict[tuple[str, str], m.Candidate] = {}
        lost: dict[str, None] = {}
        for method in self.scenario.methods:
            if method.allocation == FULL_PRECISION:
                continue
            for cell, source in product(
                cells_of(method), sources(method.tuned_on, client.client, clients)
            ):
                foreign = source != client.client
                if foreign and cell.label not in ranges.get(source, {}):
                    lost[source] = None
                    continue
                candidate = self.candidate(cell, client, summaries[source])
                if foreign and candidate.tuned_on != NOBODY:
                    candidate = replace(candidate, ranges=ranges[source][cell.label])
                candidates.setdefault((candidate.name, candidate.tuned_on), candidate)
        names = ", ".join(map(repr, lost))
        sentence = (
            f"client {client.client!r}: its models tuned on {names} are missing, because {names} "
            f"failed"
            if lost
            else ""
        )
        return tuple(candidates.values()), sentence
