"""The schema of a scenario: frozen classes whose fields are checked when they are created.

A scenario names everything that a result depends on. This module holds the fields and their legal
values; `load.py` and `explain.py` read YAML files and report mistakes with file and line.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedsim.base import yamltree
from fedsim.engine import ENGINES
from fedsim.errors import FedsimError
from fedsim.scenario.clock import ClockSettings, FaultSettings, RetrySettings
from fedsim.scenario.corpus import CorpusSettings
from fedsim.scenario.explain import sentences
from fedsim.scenario.fleet import FleetChoice
from fedsim.scenario.methods import FULL_PRECISION, Methods, cell_words, wrong_sources
from fedsim.scenario.privacy import PrivacySettings, unfit_methods
from fedsim.scenario.quantization import QuantizationSettings
from fedsim.scenario.settings import (
    BitDepth,
    OneOf,
    Settings,
    Text,
    Texts,
    as_tuple,
    problem,
    refuse_repeats,
)
from fedsim.scenario.vocabulary import VocabularySettings

BIT_DEPTHS = tuple(range(2, 17))


def _budget_shape(value: Any) -> str:
    if isinstance(value, dict):
        return "<by client>"
    return "<dealt round>" if isinstance(value, list | tuple) else "<one>"


Budget = Annotated[float, Field(gt=0, le=1_000_000)]
Budgets = Annotated[
    Annotated[Budget, Tag("<one>")]
    | Annotated[
        tuple[Budget, ...], BeforeValidator(as_tuple), Field(min_length=1), Tag("<dealt round>")
    ]
    | Annotated[dict[str, Budget], Field(min_length=1), Tag("<by client>")],
    Discriminator(_budget_shape),
]


class ModelSettings(Settings):
    """The speech model that is personalized."""

    id: Text = Field(description="hub id, local folder or cache:NAME of the model")
    window_s: float | None = Field(
        default=None,
        ge=1,
        le=30,
        description="Whisper: seconds of encoder input; null is the model's own, 30 s",
    )
    keep: Texts = Field(default=(), description="names of layers left in full precision")
    batch_size: int = Field(default=8, ge=1, description="clips in one forward pass")
    vocabulary: VocabularySettings | None = Field(
        default=None,
        description="Whisper: the tokens that model files keep, by client language: words, own;"
        " null is the whole vocabulary",
    )


class ClientSettings(Settings):
    """Which clients take part, and how large a model each can hold."""

    select: Texts | None = Field(
        default=None, min_length=1, description="keys of the clients; null is every group found"
    )
    min_clips: int = Field(
        default=0,
        ge=0,
        description="leave out clients with fewer clips, for tuning and testing together",
    )
    limit: int | None = Field(default=None, ge=1, description="maximum number of clients")
    budget_mb: Budgets | None = Field(
        default=None,
        description="maximum size of a model file in MB: one number, a list dealt round the"
        " clients in key order, or a mapping from client key to number; null is the budget of each"
        " device of the fleet",
    )
    bit_depths: Annotated[tuple[BitDepth, ...], BeforeValidator(as_tuple)] = Field(
        default=BIT_DEPTHS,
        min_length=1,
        description="bit depths that the clients' runtime supports",
    )

    @field_validator("select")
    @classmethod
    def _check_select(cls, keys: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return keys if keys is None else refuse_repeats(keys)

    @field_validator("bit_depths")
    @classmethod
    def _check_bit_depths(cls, depths: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(refuse_repeats(depths)))

    @model_validator(mode="after")
    def _check_budgets(self) -> ClientSettings:
        if isinstance(self.budget_mb, dict):
            missing = [k for k in self.select or () if k not in self.budget_mb]
            if missing:
                raise problem(f"client {missing[0]!r} has no budget: add one", "budget_mb")
        return self


AUTO = "auto"
ENGINE = OneOf(ENGINES, {AUTO: "In this process where that ends sooner than Ray starts, else Ray."})


class EngineChoice(Settings):
    """What carries messages to the clients. Only `threads` can change a result."""

    kind: Annotated[Text, ENGINE] = Field(
        default=AUTO,
        description="inprocess is one loop, ray many processes, auto the one that ends sooner",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="number of worker processes; null is as many as the cores can run",
    )
    threads: int = Field(
        default=1,
        ge=1,
        description="torch threads in each process; another number may change last digits",
    )
    address: str | None = Field(default=None, description="address of a Ray cluster to join")


class Scenario(Settings):
    """One study: a model, a corpus, clients with budgets, and the methods that are compared."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="letters, digits, '.', '_' and '-'; the run folder is named after it"
    )
    description: str = Field(
        default="", description="what the study shows; fedsim list prints the first line"
    )
    seed: int = Field(default=0, ge=0, description="seed of every random number")
    model: ModelSettings = Field(description="the speech model: id, window_s, ...")
    corpus: CorpusSettings = Field(description="the recordings: path, group_by, ...")
    clients: ClientSettings = Field(
        default=ClientSettings(), description="who takes part: budget_mb, select, ..."
    )
    quantization: QuantizationSettings = Field(
        default=QuantizationSettings(),
        description="how weights and activations become integers: weights, sensitivity, ...",
    )
    methods: Methods = Field(
        min_length=1, description="the ways to make a client's model, which are compared"
    )
    fleet: FleetChoice | None = Field(
        default=None, description="the clients' devices; null: all equal, and no virtual clock"
    )
    clock: ClockSettings = Field(
        default=ClockSettings(),
        description="the server on the virtual clock of a fleet, and when a round ends",
    )
    faults: Annotated[tuple[FaultSettings, ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="what goes wrong, and how often; if several occur, the first counts"
    )
    retries: RetrySettings = Field(
        default=RetrySettings(), description="what the server does about a client without an answer"
    )
    privacy: PrivacySettings = Field(
        default=PrivacySettings(), description="what leaves a device of its sensitivities, and how"
    )
    engine: EngineChoice = Field(
        default=EngineChoice(), description="what carries messages to the clients"
    )
    save_models: bool = Field(default=False, description="keep each client's model file")
    study: bool = Field(
        default=False,
        description="clients also send the error counts of each test clip, which no real device"
        " would: for comparisons clip by clip",
    )

    matrix: dict[str, Annotated[tuple[Any, ...], BeforeValidator(as_tuple)]] = Field(
        default={},
        description="dotted key -> values: the scenario is run for every combination of values",
    )

    @field_validator("methods")
    @classmethod
    def _resolve_methods(cls, methods: Methods, info: ValidationInfo) -> Methods:
        quantization = info.data.get("quantization")
        if quantization is None:  # it has a mistake, which is reported
            return methods
        return tuple(method.resolved(quantization) for method in methods)

    @field_validator("matrix")
    @classmethod
    def _check_matrix(cls, matrix: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for key, values in matrix.items():
            if key.split(".")[0] in ("matrix", "name", "description", "engine", "save_models"):
                raise problem("no result depends on it: remove it", key)
            if not values:
                raise problem("the list is empty: add a value", key)
            refuse_repeats(values)
        return matrix

    @model_validator(mode="after")
    def _check_methods(self) -> Scenario:
        if self.clients.budget_mb is None and self.fleet is None:
            text = "budget_mb is missing: add it, or a fleet whose devices have budgets"
            raise problem(text, "clients")
        if self.fleet is not None and all(
            method.allocation == FULL_PRECISION for method in self.methods
        ):
            text = "a fleet needs a method that makes a quantized model: add one"
            raise problem(text, "methods")
        if self.fleet is not None and self.model.vocabulary is not None:
            text = "the virtual clock knows no sizes by language: remove it, or the fleet"
            raise problem(text, "model", "vocabulary")
        reading = [i for i, method in enumerate(self.methods) if method.reads_profile]
        tables = [i for i in reading if self.methods[i].reads_table]
        if tables and len(tables) < len(reading):
            other = self.methods[next(i for i in reading if i not in tables)].allocation
            text = (
                f"losses: own makes each device send a table, and {other} reads one value per"
                f" layer: run them separately, or use losses: public"
            )
            raise problem(text, "methods", tables[0])
        seen: dict[tuple[str, ...], int] = {}
        for i, method in enumerate(self.methods):
            for cell in method.cells():
                if cell in seen:
                    text = f"repeats methods.{seen[cell]} ({cell_words(cell)}): remove one"
                    raise problem(text, "methods", i)
                seen[cell] = i
        if self.clients.select is not None:
            mistake = next(wrong_sources(self.methods, self.clients.select), None)
            if mistake:
                raise problem(mistake[0], *mistake[1])
        unfit = next(unfit_methods(self.privacy, self.methods), None)
        if unfit:
            raise problem(unfit[0], *unfit[1])
        return self

    def to_yaml(self) -> str:
        """Return the scenario as YAML that loads to an equal scenario."""
        return yamltree.dump(self.model_dump(mode="json"))


def scenario_from_json(text: str) -> Scenario:
    """Return the scenario that `Scenario.model_dump_json` wrote as text.

    Raises:
        FedsimError: for another text, such as the scenario of another version of fedsim.
    """
    try:
        return Scenario.model_validate_json(text)
    except ValidationError as error:
        mistakes = "; ".join(sentences(error, Scenario))
        raise FedsimError(
            f"a scenario does not fit this version of fedsim: {mistakes}: install the version that"
            f" sent it"
        ) from None


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a scenario file, for editors that check and complete YAML."""
    return Scenario.model_json_schema()
