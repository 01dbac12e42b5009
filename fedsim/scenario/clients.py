"""The section `clients` of a scenario: who takes part, and how large a model each can hold."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from fedsim.errors import quoted
from fedsim.scenario.corpus import MAX_CLIPS
from fedsim.scenario.settings import (
    MAX_ITEMS,
    BitDepth,
    ClientKey,
    ClientKeys,
    Settings,
    as_tuple,
    problem,
    refuse_repeats,
)

BIT_DEPTHS = tuple(range(2, 17))


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
                raise problem(f"client {quoted(missing[0])} has no budget: add one", "budget_mb")
        return self
