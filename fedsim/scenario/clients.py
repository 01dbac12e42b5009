"""The section `clients` of a scenario: who takes part, and how large a model each can hold."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedsim.errors import quoted
from fedsim.quant.formats import FORMATS, OWN, OWN_SUMMARY, depths_of
from fedsim.scenario.corpus import MAX_CLIPS
from fedsim.scenario.settings import (
    MAX_ITEMS,
    BitDepth,
    ClientKey,
    ClientKeys,
    OneOf,
    Settings,
    Text,
    as_tuple,
    problem,
    refuse_repeats,
)

FORMAT = OneOf(FORMATS, {OWN: OWN_SUMMARY})


def _budget_shape(value: Any) -> str:
    if isinstance(value, dict):
        return "<by client>"
    return "<dealt round>" if isinstance(value, list | tuple) else "<one>"


Budget = Annotated[float, Field(gt=0, le=1_000_000)]
Budgets = Annotated[
    Annotated[Budget, Tag("<one>")]
    | Annotated[
        tuple[Budget, ...],
        BeforeValidator(as_tuple),
        Field(min_length=1, max_length=MAX_ITEMS),
        Tag("<dealt round>"),
    ]
    | Annotated[
        dict[ClientKey, Budget], Field(min_length=1, max_length=MAX_ITEMS), Tag("<by client>")
    ],
    Discriminator(_budget_shape),
]


class ClientSettings(Settings):
    """Which clients take part, and how large a model each can hold."""

    select: ClientKeys | None = Field(
        default=None, min_length=1, description="keys of the clients; null is every group found"
    )
    min_clips: int = Field(
        default=0,
        ge=0,
        le=2 * MAX_CLIPS,
        description="leave out clients with fewer clips, for tuning and testing together",
    )
    limit: int | None = Field(
        default=None, ge=1, le=1_000_000, description="maximum number of clients"
    )
    budget_mb: Budgets | None = Field(
        default=None,
        description="maximum size of a model file in MB: one number, a list dealt round the"
        " clients in key order, or a mapping from client key to number; null is the budget of each"
        " device of the fleet",
    )
    format: Annotated[Text, FORMAT] = Field(
        default=OWN,
        description="what files the budgets are for: fedsim's own, or those of an export",
    )
    bit_depths: Annotated[tuple[BitDepth, ...], BeforeValidator(as_tuple)] = Field(
        default=depths_of(OWN),
        min_length=1,
        description="bit depths that the clients' runtime supports; not given, all that the format"
        " stores",
    )

    def resolved(self) -> ClientSettings:
        """Return the section with the bit depths of its format, where none are given."""
        if "bit_depths" in self.model_fields_set:
            return self
        resolved = self.model_copy(update={"bit_depths": depths_of(self.format)})
        resolved.model_fields_set.discard("bit_depths")  # a matrix may change the format
        return resolved

    @field_validator("select")
    @classmethod
    def _check_select(cls, keys: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return keys if keys is None else refuse_repeats(keys)

    @field_validator("bit_depths")
    @classmethod
    def _check_bit_depths(cls, depths: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        name = info.data.get("format", OWN)
        legal = depths_of(name)
        for i, bits in enumerate(refuse_repeats(depths)):
            if bits not in legal:
                listed = ", ".join(map(str, legal))
                raise problem(f"{name} stores {listed} bits, not {bits}: remove it", i)
        return tuple(sorted(depths))

    @model_validator(mode="after")
    def _check_budgets(self) -> ClientSettings:
        if isinstance(self.budget_mb, dict):
            missing = [k for k in self.select or () if k not in self.budget_mb]
            if missing:
                raise problem(f"client {quoted(missing[0])} has no budget: add one", "budget_mb")
        return self
