"""What a scenario is: frozen data classes, checked field by field when they are made.

A scenario names everything a result depends on. The YAML side (files, lines, sentences about
mistakes) is in `load.py`; here is only which fields there are and which values make sense.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)

from fedsim.errors import nearest
from fedsim.scenario.clients import wrong_sources
from fedsim.scenario.fleet import ClockSettings, FaultSettings, FleetChoice, RetrySettings
from fedsim.scenario.privacy import PrivacySettings, unfit_methods
from fedsim.scenario.settings import Settings, Text, Texts, Words, as_tuple, problem, refuse_repeats

FULL_PRECISION = "fp32"
"""The allocation that is no allocation: the model as it came, for comparison."""
COLUMN_NAMES = ("audio", "text", "speaker", "gender", "language")
BIT_DEPTHS = tuple(range(2, 17))
TOPICS = ("home", "timers", "music", "numbers", "names")
"""What synthetic speakers talk about; `words` is the sixth topic, and goes alone."""
_UNORDERED = (FULL_PRECISION, "uniform", "shuffled")  # allocations in which no layer comes first


def _bare_word(value: Any) -> Any:
    return {"allocation": value} if isinstance(value, str) else value


def _budget_shape(value: Any) -> str:
    if isinstance(value, dict):
        return "by client"
    return "dealt round" if isinstance(value, list | tuple) else "one"


def _config_shape(value: Any) -> str:
    if isinstance(value, dict):
        return "by language"
    return "several" if isinstance(value, list | tuple) else "one"


Gender = Literal["female", "male"]
Budget = Annotated[float, Field(gt=0, le=1_000_000)]
Budgets = Annotated[
    Annotated[Budget, Tag("one")]
    | Annotated[
        tuple[Budget, ...], BeforeValidator(as_tuple), Field(min_length=1), Tag("dealt round")
    ]
    | Annotated[dict[str, Budget], Field(min_length=1), Tag("by client")],
    Discriminator(_budget_shape),
]
Configs = Annotated[
    Annotated[Text, Tag("one")]
    | Annotated[Texts, Field(min_length=1), Tag("several")]
    | Annotated[dict[Text, Text], Field(min_length=1), Tag("by language")],
    Discriminator(_config_shape),
]
BitDepth = Annotated[int, Field(ge=2, le=16)]


class ModelSettings(Settings):
    """The speech model that is personalized."""

    id: Text = Field(description="hub id, local folder or cache:NAME of the model")
    window_s: float | None = Field(
        default=None,
        ge=1,
        le=30,
        description="Whisper: seconds of encoder input; null is the model's own 30 s",
    )
    keep: Texts = Field(default=(), description="names of layers left in full precision")
    batch_size: int = Field(default=8, ge=1, description="clips in one forward pass")


class PopulationSettings(Settings):
    """Synthetic speakers (corpus kind `voices`), and what they say."""

    speakers: int = Field(ge=1, description="number of speakers, languages dealt round to them")
    first: int = Field(
        default=0, ge=0, description="number of the first speaker; a number is always one person"
    )
    languages: Texts = Field(default=("en",), min_length=1, description="languages spoken")
    genders: Annotated[tuple[Gender, ...], BeforeValidator(as_tuple)] = Field(
        default=("female", "male"), min_length=1, description="both in turn, or one only"
    )
    topics: Words = Field(
        default=TOPICS,
        min_length=1,
        description="what sentences are about; `words` alone: the 35 words of Speech Commands",
    )
    sentences: Text | None = Field(
        default=None, description="text file of sentences to say instead, one a line"
    )

    @field_validator("languages", "genders", "topics")
    @classmethod
    def _check_lists(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return refuse_repeats(values)

    @model_validator(mode="after")
    def _check(self) -> PopulationSettings:
        if "words" in self.topics and len(self.topics) > 1:
            raise problem("words go alone: leave the other topics out", "topics")
        if self.sentences is not None and len(self.languages) > 1:
            raise problem("a sentence list is in one language: name one", "languages")
        return self


class CorpusSettings(Settings):
    """The recordings, who counts as one client, and how many of its clips are used."""

    kind: Text = Field(default="folder", description="what kind of corpus it is")
    path: Text | None = Field(
        default=None, description="folder, hub id or cache:NAME of the recordings"
    )
    population: PopulationSettings | None = Field(
        default=None, description="voices: the speakers, and what they say"
    )
    config: Configs | None = Field(
        default=None,
        description="configuration of a hub data set: one, a list whose clips are put together, or"
        " a mapping from language code to configuration",
    )
    split: Text = Field(default="test", description="split of the data set")
    columns: dict[str, Text] = Field(
        default={}, description="our name of a column -> the data set's name of it"
    )
    speakers: Text | None = Field(
        default=None,
        description="file that tells each speaker's gender: CSV with the columns speaker and"
        " gender, or LibriSpeech's SPEAKERS.TXT",
    )
    leave_out: Words = Field(
        default=(), description="texts whose clips are left out, such as _silence_"
    )
    group_by: Literal["speaker", "gender", "language"] = Field(
        description="what makes one client: all clips of one speaker, gender or language"
    )
    tuning_clips: int = Field(
        default=16, ge=1, description="clips a client tunes on, labels unread"
    )
    test_clips: int = Field(default=40, ge=1, description="held-out clips a client is tested on")
    max_seconds: float | None = Field(
        default=None, gt=0, description="leave longer clips out; null takes clips of any length"
    )
    convert: bool = Field(
        default=False, description="resample and mix down clips that are not 16 kHz mono"
    )

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        for name in columns:
            if name not in COLUMN_NAMES:
                raise problem(f"unknown column {name!r}: {nearest(name, COLUMN_NAMES)}", name)
        return columns

    @field_validator("config")
    @classmethod
    def _check_config(cls, config: Any) -> Any:
        if isinstance(config, tuple | dict):
            refuse_repeats(tuple(config.values() if isinstance(config, dict) else config))
        return config

    @model_validator(mode="after")
    def _check_kind(self) -> CorpusSettings:
        if self.kind == "voices":
            if self.population is None:
                raise problem("voices need a population: say how many speakers", "population")
            keys = ("path", "config", "split", "columns", "speakers", "leave_out")
            for key in (*keys, "max_seconds", "convert"):
                if getattr(self, key) != type(self).model_fields[key].get_default():
                    raise problem(f"corpus kind 'voices' takes no {key}: leave it out", key)
        elif self.kind in ("folder", "hub"):
            if self.path is None:
                raise problem(f"corpus kind {self.kind!r} needs a path: add one", "path")
            if self.population is not None:
                raise problem("only corpus kind 'voices' takes a population", "population")
        if self.kind == "folder" and self.config is not None:
            raise problem("corpus kind 'folder' takes no config: leave it out", "config")
        if isinstance(self.config, dict) and "language" in self.columns:
            text = "corpus.config says the language of each configuration: leave this column out"
            raise problem(text, "columns", "language")
        return self


class ClientSettings(Settings):
    """Which clients take part, and what model size each can hold."""

    select: Texts | None = Field(
        default=None, min_length=1, description="keys of the clients; null is every group found"
    )
    min_clips: int = Field(
        default=0, ge=0, description="leave out clients with fewer tuning and test clips together"
    )
    limit: int | None = Field(default=None, ge=1, description="take this many clients at most")
    budget_mb: Budgets | None = Field(
        default=None,
        description="largest model file in MB: one number, a list dealt round the clients in key"
        " order, or a mapping from client key to number; null is what each device of a fleet has",
    )
    bit_depths: Annotated[tuple[BitDepth, ...], BeforeValidator(as_tuple)] = Field(
        default=BIT_DEPTHS,
        min_length=1,
        description="bit depths that the clients' runtime executes",
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
                raise problem(f"client {missing[0]!r} has no budget: give it one", "budget_mb")
        return self


class QuantizationSettings(Settings):
    """How weights and activations become small integers, and how layers are ranked."""

    weights: Literal["per_channel", "per_tensor"] = Field(
        default="per_channel", description="one scale a channel, or one a tensor as in the paper"
    )
    activation_bits: int = Field(default=8, ge=4, le=16, description="bit depth of activations")
    sensitivity: Text = Field(default="median", description="statistic that ranks the layers")


class MethodSettings(Settings):
    """One way to make a client's model; lists mean each in turn. `fp32` has empty lists."""

    allocation: Text = Field(description="how layers get their bit depths; fp32 is the full model")
    calibration: Words = Field(
        default=("cosine",), description="how activation ranges are set on the client's clips"
    )
    tuned_on: Words = Field(
        default=("own",),
        description="whose clips plan and ranges come from: own, other (the next client in key"
        " order, round the ring), each (every other client) or a client's key",
    )
    order: Literal["descending", "ascending"] = Field(
        default="descending", description="which layers give up their bit first, by sensitivity"
    )
    draws: int = Field(default=1, ge=1, description="number of random plans, for shuffled only")

    @model_validator(mode="before")
    @classmethod
    def _empty_full_precision(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("allocation") == FULL_PRECISION:
            return {"calibration": (), "tuned_on": (), **value}
        return value

    @model_validator(mode="after")
    def _check(self) -> MethodSettings:
        for key in ("calibration", "tuned_on"):
            words = getattr(self, key)
            if self.allocation == FULL_PRECISION and words:
                raise problem(f"fp32 is not tuned and takes no {key}: leave it out", key)
            if self.allocation != FULL_PRECISION and not words:
                raise problem("names nothing: name at least one, or leave the key out", key)
            for i, word in enumerate(words):
                if word in words[:i]:
                    raise problem(f"{word!r} is listed twice: leave one out", key, i)
        if self.draws != 1 and self.allocation != "shuffled":
            raise problem(f"only shuffled takes draws, {self.allocation} does not", "draws")
        if self.order != "descending" and self.allocation in _UNORDERED:
            raise problem(f"{self.allocation} has no order of layers: leave it out", "order")
        return self

    def cells(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield each (allocation, calibration, tuned_on, order) that this method computes."""
        for calibration in self.calibration or ("-",):
            for source in self.tuned_on or ("-",):
                yield self.allocation, calibration, source, self.order


class EngineChoice(Settings):
    """What carries messages to the clients. No result depends on it, but for `threads`."""

    kind: Text = Field(
        default="ray",
        description="inprocess is one loop, ray many processes, flower Flower's own engine",
    )
    workers: int | None = Field(
        default=None, ge=1, description="processes; null is as many as the cores carry"
    )
    threads: int = Field(
        default=1,
        ge=1,
        description="threads of arithmetic in each process; another number may change last digits",
    )
    address: str | None = Field(default=None, description="address of a Ray cluster to join")


class Scenario(Settings):
    """One study: a model, a corpus, clients with budgets, and the methods that are compared."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="letters, digits, '.', '_' and '-'; it names the run folder"
    )
    description: str = Field(default="", description="what the study shows; first line is listed")
    seed: int = Field(default=0, ge=0, description="every random number comes from it")
    model: ModelSettings = Field(description="the speech model: id, window_s, ...")
    corpus: CorpusSettings = Field(description="the recordings: path, group_by, ...")
    clients: ClientSettings = Field(
        default=ClientSettings(), description="who takes part: budget_mb, select, ..."
    )
    quantization: QuantizationSettings = QuantizationSettings()
    methods: Annotated[
        tuple[
            Annotated[
                MethodSettings,
                BeforeValidator(_bare_word, json_schema_input_type=str | MethodSettings),
            ],
            ...,
        ],
        BeforeValidator(as_tuple),
    ] = Field(min_length=1, description="the ways to make a client's model, compared")
    fleet: FleetChoice | None = Field(
        default=None, description="the clients' devices; null: all alike, and no virtual clock"
    )
    clock: ClockSettings = ClockSettings()
    faults: Annotated[tuple[FaultSettings, ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="what goes wrong, and how often; of several the first that hits"
    )
    retries: RetrySettings = RetrySettings()
    privacy: PrivacySettings = PrivacySettings()
    engine: EngineChoice = EngineChoice()
    save_models: bool = Field(default=False, description="keep each client's model file")
    study: bool = Field(
        default=False,
        description="clients also send the error counts of each test clip, as no device would: for"
        " comparisons clip by clip",
    )

    matrix: dict[str, Annotated[tuple[Any, ...], BeforeValidator(as_tuple)]] = Field(
        default={},
        description="dotted key -> values: the scenario is run for every combination of them",
    )

    @field_validator("matrix")
    @classmethod
    def _check_matrix(cls, matrix: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for key, values in matrix.items():
            if key.split(".")[0] in ("matrix", "name", "description", "engine", "save_models"):
                raise problem("no result depends on it: leave it out", key)
            if not values:
                raise problem("lists nothing, so there would be nothing to run: add a value", key)
            refuse_repeats(values)
        return matrix

    @model_validator(mode="after")
    def _check_methods(self) -> Scenario:
        if self.clients.budget_mb is None and self.fleet is None:
            text = "budget_mb is missing: add it, or a fleet whose devices have budgets"
            raise problem(text, "clients")
        if self.fleet is not None and all(m.allocation == FULL_PRECISION for m in self.methods):
            text = "a fleet needs a method that makes a quantized model: add one"
            raise problem(text, "methods")
        seen: dict[tuple[str, ...], int] = {}
        for i, method in enumerate(self.methods):
            for cell in method.cells():
                if cell in seen:
                    text = f"repeats methods.{seen[cell]} ({_cell_words(cell)}): leave one out"
                    raise problem(text, "methods", i)
                seen[cell] = i
        if self.clients.select is not None:
            mistake = next(wrong_sources(self, self.clients.select), None)
            if mistake:
                raise problem(mistake[0], *mistake[1])
        unfit = next(unfit_methods(self.privacy, self.methods), None)
        if unfit:
            raise problem(unfit[0], *unfit[1])
        return self

    def to_yaml(self) -> str:
        """Return the scenario as YAML that loads to an equal scenario."""
        from fedsim.scenario.load import dump_scenario

        return dump_scenario(self)


def _cell_words(cell: tuple[str, ...]) -> str:
    allocation, calibration, source, order = cell
    if allocation == FULL_PRECISION:
        return allocation
    return f"{allocation}/{calibration} tuned on {source}, {order}"


def scenario_from_json(text: str) -> Scenario:
    """Return the scenario that `Scenario.model_dump_json` wrote."""
    return Scenario.model_validate_json(text)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a scenario file, for editors that check and complete YAML."""
    return Scenario.model_json_schema()
