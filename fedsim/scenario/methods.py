"""The section `methods` of a scenario: how a client's model is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fedsim.errors import nearest
from fedsim.quant.allocation import ALLOCATORS, Allocator
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.scenario.settings import OneOf, Settings, Text, Words, as_tuple, one_or_more, problem

FULL_PRECISION = "fp32"
"""Stands for the full-precision model where a method names an allocation."""
FULL_PRECISION_SUMMARY = "The full-precision model, for comparison."
NOBODY, OWN, OTHER, EACH = "-", "own", "other", "each"
"""Whose clips a model is tuned on: nobody's (the full-precision model); the client's own; those of
the next client in key order, after the last the first; those of every other client. Any other word
is the key of a client."""
ALLOCATION = OneOf(ALLOCATORS, {FULL_PRECISION: FULL_PRECISION_SUMMARY})
CALIBRATION = OneOf(CALIBRATORS)
_Calibration = Annotated[Text, CALIBRATION]


class MethodSettings(Settings):
    """One way to make a client's model, for each item of its lists. `fp32` has empty lists."""

    allocation: Annotated[Text, ALLOCATION] = Field(
        description="how layers get their bit depths; fp32 is the full-precision model"
    )
    calibration: Annotated[
        tuple[_Calibration, ...],
        BeforeValidator(one_or_more, json_schema_input_type=_Calibration | list[_Calibration]),
    ] = Field(
        default=("cosine",), description="how activation ranges are set on the client's clips"
    )
    tuned_on: Words = Field(
        default=("own",),
        description="whose clips plan and ranges come from: own, other (the next client in key"
        " order), each (every other client) or the key of a client",
    )
    order: Literal["descending", "ascending"] = Field(
        default="descending", description="which layers lose bits first, by sensitivity"
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
                raise problem(f"fp32 is not tuned and takes no {key}: remove it", key)
            if self.allocation != FULL_PRECISION and not words:
                raise problem("the list is empty: name at least one, or remove the key", key)
            for i, word in enumerate(words):
                if word in words[:i]:
                    raise problem(f"{word!r} is listed twice: remove one", key, i)
        entry = self.allocator
        if self.draws != 1 and (entry is None or not entry.is_random):
            text = f"{self.allocation} is not random, so every draw would be equal: remove it"
            raise problem(text, "draws")
        if self.order != "descending" and (entry is None or not entry.orders_layers):
            raise problem(f"{self.allocation} does not order the layers: remove it", "order")
        return self

    @property
    def allocator(self) -> Allocator | None:
        """The registry entry of the allocation; None for full precision."""
        return None if self.allocation == FULL_PRECISION else ALLOCATORS[self.allocation]

    @property
    def reads(self) -> str:
        """What it reads of a device's layer profile: nothing, order, vector, table or pairs."""
        return "nothing" if self.allocator is None else self.allocator.reads

    @property
    def reads_profile(self) -> bool:
        """Whether it reads the devices' layer profiles."""
        return self.reads != "nothing"

    def cells(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield each (allocation, calibration, tuned_on, order) that this method computes."""
        for calibration in self.calibration or (NOBODY,):
            for source in self.tuned_on or (NOBODY,):
                yield self.allocation, calibration, source, self.order


def _bare_word(value: Any) -> Any:
    return {"allocation": value} if isinstance(value, str) else value


Methods = Annotated[
    tuple[
        Annotated[
            MethodSettings, BeforeValidator(_bare_word, json_schema_input_type=str | MethodSettings)
        ],
        ...,
    ],
    BeforeValidator(as_tuple),
]


def wrong_sources(
    methods: Sequence[MethodSettings], keys: Sequence[str]
) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Yield (message, location) for every `tuned_on` entry that matches no client in `keys`."""
    words = (OWN, OTHER, EACH)
    for i, method in enumerate(methods):
        for j, source in enumerate(method.tuned_on):
            place = ("methods", i, "tuned_on", j)
            if source in words[1:] and len(keys) < 2:
                yield (
                    f"{source!r} needs at least two clients, and there is {len(keys) or 'none'}:"
                    f" add clients, or use own",
                    place,
                )
            elif source not in words and source not in keys:
                hint = nearest(source, (*words, *keys))
                yield f"{source!r} is not a client of this corpus: {hint}", place


def cell_words(cell: tuple[str, ...]) -> str:
    """Return one item of `MethodSettings.cells` in words."""
    allocation, calibration, source, order = cell
    if allocation == FULL_PRECISION:
        return allocation
    return f"{allocation}/{calibration} tuned on {source}, {order}"
