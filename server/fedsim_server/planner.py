"""From summaries to candidates: which models are sent to each client, and which it tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from fedsim.base.seeds import client_rng
from fedsim.errors import BudgetError, FedsimError
from fedsim.protocol import messages as m
from fedsim.quant.allocation import ALLOCATORS, Sizes, allocate
from fedsim.quant.bank import LayerBank
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.quant.layers import Layer
from fedsim.quant.profile import LayerProfile
from fedsim.quant.rows import Rows, trimmed_layers
from fedsim.scenario.cells import Cell, all_cells, cells_of, measure_of, sources
from fedsim.scenario.methods import FULL_PRECISION, NO_CLIENT
from fedsim.scenario.schema import Scenario
from fedsim.speech.public_model import PublicModel
from fedsim.study.vocabulary import TrimmedModels


@dataclass(frozen=True)
class Returned:
    """What a client returned of one of its models, for others to test it: activation ranges, and
    the names of the layers that it rounded itself."""

    ranges: tuple[float, ...]
    blobs: bytes = b""


@dataclass(frozen=True)
class Planner:
    """Chooses bit depths by exact sizes, and names the packed layers of each plan."""

    scenario: Scenario
    sizes: Sizes
    """Bytes of each layer at every bit depth that the scenario allows."""
    bank: LayerBank
    public: PublicModel
    """What is known of the model before any user's audio."""
    full_bytes: int
    """Bytes of the full-precision model."""
    clips: bytes = b""
    """Name of the public clips in the bank, where devices blend second moments; else empty."""
    downloads: Mapping[str, int] = field(default_factory=dict)
    """What a device that rounds its own model has to fetch, once -> bytes."""
    trimmed: TrimmedModels | None = None
    """The model by client language, where model files hold a part of the vocabulary."""
    metric: str = "wer"
    """What clients count of transcripts, "wer" or "cer"."""
    in_language: Callable[[str], Planner] | None = None
    """f(client language) -> the planner for the model of clients that speak it; None where one
    model serves all."""
    _restricted: dict[tuple[str, tuple[int, ...]], Sizes] = field(default_factory=dict)

    def of(self, client: m.Summary) -> Planner:
        """Return the planner for a client's model: this one, unless it is that of a language.

        Raises `FedsimError`, which names the client, if the model has not the client's language.
        """
        if self.in_language is None:
            return self
        try:
            return self.in_language(client.language)
        except FedsimError as error:
            raise FedsimError(f"client {client.client!r}: {error}") from error

    def candidate(self, cell: Cell, client: m.Summary, source: m.Summary) -> m.Candidate:
        """Return the model of `cell` for `client`'s budget, tuned on `source`'s summary.

        It has no layers if a device rounds them.

        Raises:
            BudgetError: if the budget is infeasible; names the client.
            FedsimError: if the summary does not fit the model; names the source.
        """
        reads = ALLOCATORS[cell.allocation].reads != "nothing" and cell.losses != "public"
        rng = client_rng(self.scenario.seed, source.client, f"shuffled-{cell.draw}")
        try:
            if reads and self.scenario.privacy.chosen.gives == "plan":
                bits = self._plan_of_device(source.sensitivity, client)
            else:
                bits = allocate(
                    cell.allocation,
                    self._profile(cell, source),
                    self._sizes_at(client),
                    client.budget_bytes,
                    order=cell.order,
                    rng=rng,
                )
        except BudgetError as error:
            raise BudgetError(f"client {client.client!r}: {error}") from error
        except FedsimError as error:
            raise FedsimError(f"client {source.client!r}: {error}") from error
        user_data = CALIBRATORS[cell.calibration].user_data or cell.rounded_by_device
        rows = self._rows(client)
        names = () if cell.rounded_by_device else self.bank.manifest(bits, cell.rounding, rows)
        activation_bits = self.scenario.quantization.activation_bits
        return m.Candidate(
            name=cell.label,
            calibration=cell.calibration,
            tuned_on=source.client if reads or user_data else NO_CLIENT,
            bits=bits,
            blobs=bytes.fromhex("".join(names)),
            input_bits=self.public.input_bits(activation_bits, cell.calibration),
            rounding=cell.rounding,
            moments=cell.moments if cell.rounded_by_device else "",
            public=self.clips if cell.moments == "blend" else b"",
            runtime=cell.runtime,
        )

    def _profile(self, cell: Cell, source: m.Summary) -> LayerProfile | None:
        """Return what the allocator reads: of the public clips, or from the source's summary."""
        if cell.losses != "public":
            return source.profile(measure_of(self.scenario))
        pairs = ALLOCATORS[cell.allocation].reads == "pairs"
        return self.public.losses(
            cell.rounding, self.bank.weight_format, self.sizes.depths, pairs=pairs
        )

    def file_bytes(self, client: m.Summary, bits: tuple[int, ...]) -> int:
        """Return the exact bytes of a client's model file with these bit depths."""
        return self._sizes(client).total(bits)

    def holds(self, names: bytes) -> bool:
        """Return whether the bank has all layers whose names, 32 bytes each, stand in a row."""
        each = (names[i : i + m.HASH_BYTES].hex() for i in range(0, len(names), m.HASH_BYTES))
        return all(name in self.bank.store for name in each)

    def returned(self, receipt: m.Receipt) -> dict[str, Returned]:
        """Return cell label -> what a client returned of that model."""
        layers, blobs, models = len(self.bank.layers), receipt.blobs, {}
        for i, cell in enumerate(all_cells(self.scenario)):
            ranges = receipt.ranges[2 * layers * i : 2 * layers * (i + 1)]
            size = layers * m.HASH_BYTES * cell.rounded_by_device
            models[cell.label] = Returned(ranges, blobs[:size])
            blobs = blobs[size:]
        return models

    def fetched(self, candidates: Sequence[m.Candidate], receipt: m.Receipt) -> dict[str, int]:
        """Return what a client had to fetch for its models -> bytes.

        A model's layers count as the bytes of its file, though workers read them from disk.
        """
        sizes = zip(candidates, receipt.file_bytes, strict=True)
        down = {f"model {one.name}": size for one, size in sizes if not one.rounded_here}
        if any(candidate.rounded_here for candidate in candidates):
            down |= self.downloads
        return down

    def layers(self, client: m.Summary) -> tuple[Layer, ...]:
        """Return the layers of a client's models: one may have rows of its language only."""
        return trimmed_layers(self.bank.layers, self._rows(client))

    def _rows(self, client: m.Summary) -> Rows | None:
        return None if self.trimmed is None else self.trimmed.of(client.language or None).rows

    def _sizes(self, client: m.Summary) -> Sizes:
        if self.trimmed is None:
            return self.sizes
        return self.trimmed.of(client.language or None).sizes

    def _rounded_by(
        self, source: m.Summary, cell: Cell, client: m.Summary, blobs: bytes
    ) -> m.Candidate:
        """Return the model that another device rounded, with these layers, for `client` to test.

        Of the tokens it holds those of the client's language, at the depth of the source's plan or
        the next smaller one with which the file fits: its language may have more of them.
        """
        model = replace(self.candidate(cell, source, source), blobs=blobs)
        rows = self._rows(client)
        if rows is None:
            return model
        at = next(i for i, layer in enumerate(self.bank.layers) if layer.name == rows.layer)
        legal = sorted(self._sizes_at(client).depths, reverse=True)
        depths = [depth for depth in legal if depth <= model.bits[at]]
        plans = ((*model.bits[:at], depth, *model.bits[at + 1 :]) for depth in depths)
        fitting = (bits for bits in plans if self.file_bytes(client, bits) <= client.budget_bytes)
        bits = next(fitting, None)
        if bits is None:
            raise BudgetError(
                f"client {client.client!r}: the layers that the device of {source.client!r} rounded"
                f" leave too little of the budget for the tokens of its own language; raise"
                f" clients.budget_mb"
            )
        name = bytes.fromhex(self.bank.name(at, bits[at], model.rounding, rows))
        start = at * m.HASH_BYTES
        return replace(model, bits=bits, blobs=blobs[:start] + name + blobs[start + m.HASH_BYTES :])

    def _plan_of_device(self, depths: tuple[float, ...], client: m.Summary) -> tuple[int, ...]:
        """Return the plan that a device made itself; `BudgetError` if it exceeds the budget."""
        bits, budget = tuple(int(depth) for depth in depths), client.budget_bytes
        size = self._sizes(client).total(bits)
        if size > budget:
            raise BudgetError(
                f"the plan of its device takes {size:,} bytes, more than the budget of {budget:,};"
                f" give both sides the same scenario"
            )
        return bits

    def _sizes_at(self, client: m.Summary) -> Sizes:
        """Return the sizes at the bit depths that a client's runtime executes."""
        key = client.language, client.bit_depths
        if key not in self._restricted:
            self._restricted[key] = self._sizes(client).restricted(client.bit_depths)
        return self._restricted[key]

    def own(self, client: m.Summary) -> tuple[m.Candidate, ...]:
        """Return every model that is tuned on the client's own clips, in the order of cells."""
        return tuple(self.candidate(cell, client, client) for cell in all_cells(self.scenario))

    def evaluation(
        self, candidates: tuple[m.Candidate, ...], layers: tuple[bytes, ...] = ()
    ) -> m.Evaluation:
        """Return the request to test candidates; `layers` are the packed layers that it carries."""
        scenario = self.scenario
        return m.Evaluation(
            full_precision=any(x.allocation == FULL_PRECISION for x in scenario.methods),
            candidates=candidates,
            clip_counts=scenario.study,
            workload=scenario.fleet is not None,
            layers=layers,
            metric=self.metric,
            text_normalizer=scenario.text_normalizer,
            rare_beyond=scenario.rare_beyond or 0,
        )

    def tested(
        self,
        client: m.Summary,
        summaries: Mapping[str, m.Summary],
        returned: Mapping[str, Mapping[str, Returned]],
        clients: list[str],
    ) -> tuple[tuple[m.Candidate, ...], str]:
        """Return the models that a client tests, and a sentence on missing ones or "".

        Args:
            client: summary of the client that tests.
            summaries: client -> its summary.
            returned: client -> cell label -> what the client returned of its model.
            clients: keys of all clients, sorted.
        """
        candidates: dict[tuple[str, str], m.Candidate] = {}
        lost: dict[str, None] = {}
        for method in self.scenario.methods:
            if method.allocation == FULL_PRECISION:
                continue
            for cell, source in product(
                cells_of(method, self.scenario.quantization),
                sources(method.tuned_on, client.client, clients),
            ):
                foreign = source != client.client
                if foreign and cell.label not in returned.get(source, {}):
                    lost[source] = None
                    continue
                candidate = self.candidate(cell, client, summaries[source])
                if foreign and candidate.tuned_on != NO_CLIENT:
                    known = returned[source][cell.label]
                    if candidate.rounded_here:
                        candidate = self._rounded_by(summaries[source], cell, client, known.blobs)
                    candidate = replace(candidate, ranges=known.ranges)
                candidates.setdefault((candidate.name, candidate.tuned_on), candidate)
        if not lost:
            return tuple(candidates.values()), ""
        names = ", ".join(map(repr, lost))
        sentence = f"client {client.client!r}: no model tuned on {names}, because {names} failed"
        return tuple(candidates.values()), sentence
