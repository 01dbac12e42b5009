"""The section `methods` of a scenario: how a client's model is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fedsim.errors import nearest, quoted
from fedsim.quant.allocation import ALLOCATORS, Allocator
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.quant.rounding import ROUNDINGS
from fedsim.quant.runtimes import EMULATED, EMULATED_SUMMARY, RUNTIMES
from fedsim.scenario.quantization import ROUNDING, Losses, Moments, QuantizationSettings
from fedsim.scenario.settings import (
    MAX_ITEMS,
    ClientKey,
    OneOf,
    Settings,
    Text,
    as_tuple,
    one_or_more,
    problem,
    refuse_repeats,
)

FULL_PRECISION = "fp32"
"""Stands for the full-precision model where a method names an allocation."""
FULL_PRECISION_SUMMARY = "The full-precision model, for comparison."
NOBODY, OWN, OTHER, EACH = "-", "own", "other", "each"
"""Whose clips a model is tuned on: nobody's (the full-precision model); the client's own; those of
the next client in key order, after the last the first; those of every other client. Any other word
is the key of a client."""
NO_CLIENT = ""
"""In place of the key of the client that a model is tuned on: nobody. No key is empty."""
ALLOCATION = OneOf(ALLOCATORS, {FULL_PRECISION: FULL_PRECISION_SUMMARY})
CALIBRATION = OneOf(CALIBRATORS)
RUNTIME = OneOf(RUNTIMES, {EMULATED: EMULATED_SUMMARY})
_Calibration = Annotated[Text, CALIBRATION]
_Rounding = Annotated[Text, ROUNDING]
_Runtime = Annotated[Text, RUNTIME]
NOT_RESOLVED: tuple[()] = ()
"""In place of what a method takes from the section `quantization`; `resolved` fills it in."""


class MethodSettings(Settings):
    """One way to make a client's model, for each item of its lists. `fp32` has empty lists.

    Lists that are not given are those of the section `quantization`.
    """

    allocation: Annotated[Text, ALLOCATION] = Field(
        description="how layers get their bit depths; fp32 is the full-precision model, whatever"
        " model.dtype"
    )
    calibration: Annotated[
        tuple[_Calibration, ...],
        BeforeValidator(one_or_more, json_schema_input_type=_Calibration | list[_Calibration]),
    ] = Field(
        default=NOT_RESOLVED,
        description="how inputs of layers are quantized; not given, cosine, or what"
        " quantization.activations says",
    )
    rounding: Annotated[
        tuple[_Rounding, ...],
        BeforeValidator(one_or_more, json_schema_input_type=_Rounding | list[_Rounding]),
    ] = Field(
        default=NOT_RESOLVED,
        description="how weights get their codes; not given, as quantization.rounding says",
    )
    moments: Annotated[
        tuple[Moments, ...],
        BeforeValidator(one_or_more, json_schema_input_type=Moments | list[Moments]),
    ] = Field(
        default=NOT_RESOLVED,
        description="whose clips compensated rounding fits; not given, as"
        " quantization.moments says",
    )
    runtime: Annotated[
        tuple[_Runtime, ...],
        BeforeValidator(one_or_more, json_schema_input_type=_Runtime | list[_Runtime]),
    ] = Field(
        default=(EMULATED,),
        description="what computes the model when it is tested: emulated, or a runtime of"
        " clients.format, which quantizes inputs of layers its own way",
    )
    tuned_on: Annotated[
        tuple[ClientKey, ...],
        BeforeValidator(one_or_more, json_schema_input_type=str | list[str]),
        Field(max_length=MAX_ITEMS),
    ] = Field(
        default=("own",),
        description="whose clips plan and ranges come from: own, other (the next client in key"
        " order), each (every other client) or the key of a client",
    )
    losses: Losses | None = Field(
        default=None,
        description="knapsack: whose clips show what each bit depth costs; not given, as"
        " quantization.losses says",
    )
    order: Literal["descending", "ascending"] = Field(
        default="descending", description="which layers lose bits first, by sensitivity"
    )
    draws: int = Field(
        default=1, ge=1, le=1_000, description="number of random plans, for shuffled only"
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_full_precision(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("allocation") == FULL_PRECISION:
            return {"tuned_on": (), "runtime": (), **value}
        return value

    @model_validator(mode="after")
    def _check(self) -> MethodSettings:
        for key in ("calibration", "rounding", "moments", "runtime", "tuned_on"):
            words = getattr(self, key)
            if self.allocation == FULL_PRECISION and words:
                raise problem(f"fp32 is not tuned and takes no {key}: remove it", key)
            given = key in ("runtime", "tuned_on") or key in self.model_fields_set
            given = given and key != "moments" and (key != "calibration" or self.emulates)
            if self.allocation != FULL_PRECISION and not words and given:
                raise problem("the list is empty: name at least one, or remove the key", key)
            refuse_repeats(words, key)
        if self.runtime and not self.emulates and self.calibration:
            text = f"{self.runtime[0]} quantizes inputs its own way: remove it, or add emulated"
            raise problem(f"{text} to runtime", "calibration")
        entry = self.allocator
        if self.draws != 1 and (entry is None or not entry.is_random):
            text = f"{self.allocation} is not random, so every draw would be equal: remove it"
            raise problem(text, "draws")
        if self.order != "descending" and (entry is None or not entry.orders_layers):
            raise problem(f"{self.allocation} does not order the layers: remove it", "order")
        if self.losses is not None and not self.reads_table:
            raise problem(f"{self.allocation} reads no table of losses: remove it", "losses")
        return self

    @property
    def allocator(self) -> Allocator | None:
        """The registry entry of the allocation; None for full precision."""
        return None if self.allocation == FULL_PRECISION else ALLOCATORS[self.allocation]

    @property
    def emulates(self) -> bool:
        """Whether any of its models is tested in fedsim's emulation."""
        return EMULATED in self.runtime

    @property
    def reads(self) -> str:
        """What it reads of a device's layer profile: nothing, order, vector, table or pairs."""
        return "nothing" if self.allocator is None else self.allocator.reads

    @property
    def reads_table(self) -> bool:
        """Whether it reads what each layer's bit depth costs, rather than one value per layer."""
        return self.reads in ("table", "pairs")

    @property
    def reads_profile(self) -> bool:
        """Whether it reads the devices' layer profiles; a table may be that of public clips."""
        return self.losses == "own" if self.reads_table else self.reads != "nothing"

    def resolved(self, quantization: QuantizationSettings) -> MethodSettings:
        """Return the method with the lists that it does not give filled in."""
        if self.allocation == FULL_PRECISION:
            return self
        rounding = self.rounding or (quantization.rounding,)
        fits = any(ROUNDINGS[name].reads_moments for name in rounding)
        if self.moments and not fits:
            names = ", ".join(rounding)
            raise problem(f"rounding {names} reads no moments: remove it", "moments")
        resolved = self.model_copy(
            update={
                "calibration": (self.calibration or (quantization.default_calibration,))
                if self.emulates
                else (),
                "rounding": rounding,
                "moments": (self.moments or (quantization.moments,)) if fits else (),
                "losses": (self.losses or quantization.losses) if self.reads_table else None,
            }
        )
        # What was given stays known: a matrix may change what the rest follows.
        resolved.model_fields_set.intersection_update(self.model_fields_set)
        return resolved

    def ways(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield each (calibration, rounding, whose moments or `NOBODY`, runtime) of a resolved
        method; the calibration is `NOBODY` where the runtime quantizes inputs its own way."""
        tested = [(name, EMULATED) for name in self.calibration]
        tested += [(NOBODY, name) for name in self.runtime if name != EMULATED]
        for rounding, (calibration, runtime) in product(self.rounding, tested):
            whose = self.moments if ROUNDINGS[rounding].reads_moments else (NOBODY,)
            yield from ((calibration, rounding, moments, runtime) for moments in whose)

    @property
    def n_models(self) -> int:
        """Number of models of a client that a resolved method makes, or of an unresolved one the
        least; a source that stands for several clients counts as one."""
        return max(1, sum(1 for _ in self.ways()) * self.draws) * max(1, len(self.tuned_on))

    def cells(self) -> Iterator[tuple[str, ...]]:
        """Yield each (allocation, calibration, rounding, moments, runtime, tuned_on, order, losses)
        that a resolved method computes."""
        for way in self.ways() if self.rounding else ((NOBODY,) * 4,):
            for source in self.tuned_on or (NOBODY,):
                yield self.allocation, *way, source, self.order, self.losses or NOBODY


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
    words, known = (OWN, OTHER, EACH), frozenset(keys)
    for i, method in enumerate(methods):
        for j, source in enumerate(method.tuned_on):
            place = ("methods", i, "tuned_on", j)
            if source in words[1:] and len(keys) < 2:
                yield (
                    f"{source!r} needs at least two clients, and there is {len(keys) or 'none'}:"
                    f" add clients, or use own",
                    place,
                )
            elif source not in words and source not in known:
                hint = nearest(source, (*words, *keys))
                yield f"{quoted(source)} is not a client of this corpus: {hint}", place


def cell_words(cell: tuple[str, ...]) -> str:
    """Return one item of `MethodSettings.cells` in words."""
    allocation, calibration, rounding, moments, runtime, source, order, _ = cell
    if allocation == FULL_PRECISION:
        return allocation
    whose = "" if moments == NOBODY else f" with {moments} moments"
    inputs = calibration if runtime in (EMULATED, NOBODY) else runtime
    return f"{allocation}/{inputs}, {rounding}{whose}, tuned on {source}, {order}"
