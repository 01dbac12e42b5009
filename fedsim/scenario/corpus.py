"""The section `corpus` of a scenario: the recordings, or the synthetic speakers in their place."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from fedsim.errors import nearest, quoted
from fedsim.scenario.place import Places, PlaceSettings
from fedsim.scenario.readers import OPTIONAL_KEYS, READERS
from fedsim.scenario.readers import CorpusReader as CorpusReader
from fedsim.scenario.settings import (
    OneOf,
    Settings,
    Text,
    Texts,
    Words,
    as_tuple,
    problem,
    refuse_repeats,
)

MAX_CLIPS = 100_000
"""Clips of one client that are tuned on, and that are tested."""
MAX_SPOKEN = 5_000
"""The same of synthetic speakers: grammars have no more sentences to draw from in seconds."""
MAX_SPEAKERS = 100_000
COLUMN_NAMES = ("audio", "text", "speaker", "gender", "language")
TOPICS = ("home", "timers", "music", "numbers", "names")
"""What synthetic speakers talk about. There is a sixth topic, `words`, which cannot be combined."""


def _config_shape(value: Any) -> str:
    if isinstance(value, dict):
        return "<by language>"
    return "<several>" if isinstance(value, list | tuple) else "<one>"


Gender = Literal["female", "male"]
Configs = Annotated[
    Annotated[Text, Tag("<one>")]
    | Annotated[Texts, Field(min_length=1), Tag("<several>")]
    | Annotated[dict[Text, Text], Field(min_length=1), Tag("<by language>")],
    Discriminator(_config_shape),
]


class PopulationSettings(Settings):
    """Synthetic speakers (corpus kind `voices`), and what they say."""

    speakers: int = Field(
        ge=1,
        le=MAX_SPEAKERS,
        description="number of speakers, to whom the languages are dealt round",
    )
    first: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="number of the first speaker; a number is always the same person",
    )
    languages: Texts = Field(default=("en",), min_length=1, description="languages spoken")
    genders: Annotated[tuple[Gender, ...], BeforeValidator(as_tuple)] = Field(
        default=("female", "male"), min_length=1, description="both in turn, or only one"
    )
    topics: Words = Field(
        default=TOPICS,
        min_length=1,
        description="what sentences are about; `words` alone: the 35 words of Speech Commands",
    )
    sentences: Text | None = Field(
        default=None, description="text file of sentences to say instead, one per line"
    )
    place: Places = Field(
        default=PlaceSettings(),
        description="where devices stand: quiet, telephone, far or noisy, or a mapping with kind,"
        " snr_db and noise; a list is dealt round pairs of speakers",
    )

    @field_validator("languages", "genders", "topics")
    @classmethod
    def _check_lists(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return refuse_repeats(values)

    @model_validator(mode="after")
    def _check(self) -> PopulationSettings:
        if "words" in self.topics and len(self.topics) > 1:
            raise problem("words cannot be combined: remove the other topics", "topics")
        if self.sentences is not None and len(self.languages) > 1:
            raise problem("a sentence list has one language: name only that one", "languages")
        return self

    def place_of(self, number: int) -> PlaceSettings:
        """Return where speaker `number` stands: of several places, each pair stands in the next.

        A pair is a woman and a man, so no gender has a place for itself, and nobody's place
        depends on who else there is.
        """
        if isinstance(self.place, PlaceSettings):
            return self.place
        return self.place[number // 2 % len(self.place)]


class CorpusSettings(Settings):
    """The recordings, what makes one client, and how many of its clips are used."""

    kind: Annotated[Text, OneOf(READERS)] = Field(
        default="auto",
        description="what kind of corpus it is; auto tells by the files at path",
    )
    path: Text | None = Field(
        default=None, description="folder, manifest, hub id or cache:NAME of the recordings"
    )
    population: PopulationSettings | None = Field(
        default=None, description="voices: the synthetic speakers, and what they say"
    )
    config: Configs | None = Field(
        default=None,
        description="configuration of a hub data set, or language folder of a corpus: one, a list"
        " whose clips are combined, or a mapping from language code to configuration",
    )
    split: Text = Field(default="test", description="split of the data set")
    columns: dict[str, Text] = Field(
        default={}, description="fedsim's name of a column -> the data set's name of it"
    )
    speakers: Text | None = Field(
        default=None,
        description="file with the gender of each speaker: CSV with the columns speaker and gender,"
        " or LibriSpeech's SPEAKERS.TXT",
    )
    leave_out: Words = Field(
        default=(), description="clips with these texts are left out, such as _silence_"
    )
    group_by: Literal["speaker", "gender", "language"] = Field(
        description="what makes one client: all clips of one speaker, gender or language"
    )
    tuning_clips: int = Field(
        default=16,
        ge=1,
        le=MAX_CLIPS,
        description="clips that a client tunes on; their labels are not read",
    )
    test_clips: int = Field(
        default=40, ge=1, le=MAX_CLIPS, description="held-out clips a client is tested on"
    )
    max_seconds: float | None = Field(
        default=None,
        gt=0,
        le=3_600,
        description="longer clips are left out; null takes clips of any length",
    )
    duplicates: Literal["refuse", "keep"] = Field(
        default="refuse",
        description="what is done about a client two of whose clips have the same content under"
        " different names: refuse it, or keep both",
    )
    convert: bool = Field(
        default=False, description="resample and mix down clips that are not 16 kHz mono"
    )

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        for name in columns:
            if name not in COLUMN_NAMES:
                raise problem(f"unknown column {quoted(name)}: {nearest(name, COLUMN_NAMES)}", name)
        return columns

    @field_validator("config")
    @classmethod
    def _check_config(cls, config: Any) -> Any:
        if isinstance(config, tuple | dict):
            refuse_repeats(tuple(config.values() if isinstance(config, dict) else config))
        return config

    @model_validator(mode="after")
    def _check_kind(self) -> CorpusSettings:
        reader = READERS[self.kind]
        for key in OPTIONAL_KEYS:
            given = getattr(self, key) != type(self).model_fields[key].get_default()
            if key in reader.needs and not given:
                raise problem(f"corpus kind {self.kind!r} needs {key}: add it", key)
            if given and key not in (*reader.needs, *reader.takes):
                raise problem(f"corpus kind {self.kind!r} takes no {key}: remove it", key)
        for key in ("tuning_clips", "test_clips") if self.population is not None else ():
            if getattr(self, key) > MAX_SPOKEN:
                text = f"synthetic speakers say at most {MAX_SPOKEN:,} sentences: lower it"
                raise problem(text, key)
        if isinstance(self.config, dict) and "language" in self.columns:
            text = "corpus.config gives the language of each configuration: remove this column"
            raise problem(text, "columns", "language")
        return self
