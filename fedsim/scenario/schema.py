"""The schema of a scenario: frozen classes whose fields are checked when they are created.

A scenario names everything that a result depends on. This module holds the fields and their legal
values; `load.py` and `explain.py` read YAML files and report mistakes with file and line.
"""

from __future__ import annotations

from html import escape
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedsim.base import yamltree
from fedsim.errors import FedsimError
from fedsim.quant.runtimes import EMULATED, RUNTIMES
from fedsim.scenario.clients import ClientSettings
from fedsim.scenario.clock import ClockSettings, FaultSettings, RetrySettings
from fedsim.scenario.corpus import CorpusSettings
from fedsim.scenario.engine import EngineChoice
from fedsim.scenario.explain import sentences
from fedsim.scenario.fleet import FleetChoice
from fedsim.scenario.methods import FULL_PRECISION, Methods, cell_words, wrong_sources
from fedsim.scenario.privacy import PrivacySettings, unfit_methods
from fedsim.scenario.quantization import QuantizationSettings
from fedsim.scenario.scores import BASIC, NORMALIZERS, UNSPACED
from fedsim.scenario.settings import (
    OneOf,
    Settings,
    Text,
    Texts,
    as_tuple,
    problem,
    refuse_repeats,
)
from fedsim.scenario.vocabulary import VocabularySettings

MAX_METHODS = 100
MAX_MODELS = 10_000
"""Models that all methods together make of one client."""


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
    batch_size: int = Field(default=8, ge=1, le=1024, description="clips in one forward pass")
    target_lang: Text | None = Field(
        default=None,
        description="MMS: the language whose adapters, head and vocabulary serve all clients, such"
        " as ita; null: each client is served by those of its own language",
    )
    normalize: bool | None = Field(
        default=None,
        description="raw audio, in place of a lost preprocessor_config.json: whether the model was"
        " trained on clips of zero mean and unit variance; null: the file says it",
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32",
        description="what the full-precision model is held and computed in; models made from it are"
        " computed in float32",
    )
    vocabulary: VocabularySettings | None = Field(
        default=None,
        description="Whisper: the tokens that model files keep, by client language: words, own;"
        " null is the whole vocabulary",
    )


class Scenario(Settings):
    """One study: a model, a corpus, clients with budgets, and the methods that are compared."""

    name: Annotated[
        str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    ] = Field(description="at most 100 letters, digits, '.', '_' and '-'; it names the run folder")
    description: str = Field(
        default="",
        max_length=20_000,
        description="what the study shows; fedsim list prints the first line",
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="seed of every random number")
    model: ModelSettings = Field(description="the speech model: id, window_s, ...")
    corpus: CorpusSettings = Field(description="the recordings: path, group_by, ...")
    clients: ClientSettings = Field(
        default=ClientSettings(), description="who takes part: budget_mb, select, ..."
    )
    quantization: QuantizationSettings = Field(
        default=QuantizationSettings(),
        description="how weights and activations become integers: weights, sensitivity, ...",
    )
    metric: Literal["auto", "wer", "cer"] = Field(
        default="auto",
        description="what errors are counted in, words or characters; auto is cer where every"
        " client's language is written without spaces, else wer",
    )
    text_normalizer: Annotated[Text, OneOf(NORMALIZERS)] = Field(
        default=BASIC,
        description="how references and transcripts are normalized before they are compared",
    )
    rare_beyond: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="errors are also counted on rare words, those beyond this many of the most"
        " frequent of a clip's language (package wordfreq); null counts none",
    )
    methods: Methods = Field(
        min_length=1,
        max_length=MAX_METHODS,
        description="the ways to make a client's model, which are compared",
    )
    fleet: FleetChoice | None = Field(
        default=None, description="the clients' devices; null: all equal, and no virtual clock"
    )
    clock: ClockSettings = Field(
        default=ClockSettings(),
        description="the server on the virtual clock of a fleet, and when a round ends",
    )
    faults: Annotated[tuple[FaultSettings, ...], BeforeValidator(as_tuple)] = Field(
        default=(),
        max_length=100,
        description="what goes wrong, and how often; if several occur, the first counts",
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

    matrix: dict[
        Text, Annotated[tuple[Any, ...], BeforeValidator(as_tuple), Field(max_length=1_000)]
    ] = Field(
        default={},
        max_length=100,
        description="dotted key -> values: the scenario is run for every combination of values",
    )

    @field_validator("clients")
    @classmethod
    def _resolve_clients(cls, clients: ClientSettings) -> ClientSettings:
        return clients.resolved()

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
            refuse_repeats(values, key)
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
        reading = [i for i, method in enumerate(self.methods) if method.reads_profile]
        tables = [i for i in reading if self.methods[i].reads_table]
        if tables and len(tables) < len(reading):
            other = self.methods[next(i for i in reading if i not in tables)].allocation
            text = (
                f"losses: own makes each device send a table, and {other} reads one value per"
                f" layer: run them separately, or use losses: public"
            )
            raise problem(text, "methods", tables[0])
        for i, method in enumerate(self.methods):
            for j, name in enumerate(method.runtime):
                if name != EMULATED and RUNTIMES[name].format != self.clients.format:
                    needed = RUNTIMES[name].format
                    text = f"{name} runs files of another format: set clients.format: {needed}"
                    raise problem(text, "methods", i, "runtime", j)
        count = sum(method.n_models for method in self.methods)
        if count > MAX_MODELS:
            text = f"{count:,} models of each client are more than {MAX_MODELS:,}: list fewer"
            raise problem(text, "methods")
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
        if self.rare_beyond is not None and self.text_normalizer == UNSPACED:
            text = f"texts normalized by {UNSPACED} have no words to count: remove rare_beyond"
            raise problem(text, "rare_beyond")
        unfit = next(unfit_methods(self.privacy, self.methods), None)
        if unfit:
            raise problem(unfit[0], *unfit[1])
        return self

    def to_yaml(self) -> str:
        """Return the scenario as YAML that loads to an equal scenario."""
        return yamltree.dump(self.model_dump(mode="json"))

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the YAML, with every default."""
        return f"<pre>{escape(self.to_yaml())}</pre>"


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
