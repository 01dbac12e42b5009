"""From summaries to candidates: which models are sent to each client, and which it tests."""

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
    """Chooses bit depths by exact sizes, and names the packed layers of each plan."""

    scenario: Scenario
    sizes: Sizes
    """Bytes of each layer at every bit depth that the scenario allows."""
    bank: LayerBank
    _restricted: dict[tuple[int, ...], Sizes] = field(default_factory=dict)

    def candidate(self, cell: Cell, client: m.Summary, source: m.Summary) -> m.Candidate:
        """Return the model of `cell` for `client`'s budget, tuned on `source`'s summary.

        Raises:
            BudgetError: if the budget is infeasible; names the client.
            FedsimError: if the summary does not fit the model; names the source.
        """
        settings = self.scenario.quantization
        reads = ALLOCATORS[cell.allocation].reads != "nothing"
        rng = client_rng(self.scenario.seed, source.client, f"shuffled-{cell.draw}")
        try:
            if reads and self.scenario.privacy.chosen.gives == "plan":
                bits = self._plan_of_device(source.sensitivity, client.budget_bytes)
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

    def _plan_of_device(self, depths: tuple[float, ...], budget: int) -> tuple[int, ...]:
        """Return the plan that a device made itself; `BudgetError` if it exceeds the budget."""
        bits = tuple(int(depth) for depth in depths)
        size = self.sizes.total(bits)
        if size > budget:
            raise BudgetError(
                f"the plan of its device takes {size:,} bytes, more than the budget of {budget:,};"
                f" give both sides the same scenario"
            )
        return bits

    def _sizes_at(self, depths: tuple[int, ...]) -> Sizes:
        """Return the sizes at the bit depths that a client's runtime executes."""
        if depths not in self._restricted:
            self._restricted[depths] = self.sizes.restricted(depths)
        return self._restricted[depths]

    def own(self, client: m.Summary) -> tuple[m.Candidate, ...]:
        """Return every model that is tuned on the client's own clips, in the order of cells."""
        return tuple(self.candidate(cell, client, client) for cell in all_cells(self.scenario))

    def tested(
        self,
        client: m.Summary,
        summaries: Mapping[str, m.Summary],
        ranges: Mapping[str, Mapping[str, tuple[float, ...]]],
        clients: list[str],
    ) -> tuple[tuple[m.Candidate, ...], str]:
        """Return the models that a client tests, and a sentence on missing ones or "".

        Args:
            client: summary of the client that tests.
            summaries: client -> its summary.
            ranges: client -> cell label -> the activation ranges that the client returned.
            clients: keys of all clients, sorted.
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
        if not lost:
            return tuple(candidates.values()), ""
        names = ", ".join(map(repr, lost))
        sentence = f"client {client.client!r}: no model tuned on {names}, because {names} failed"
        return tuple(candidates.values()), sentence
