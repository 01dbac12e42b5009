"""What a quantity of a device may be drawn from, as a scenario writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from fedsim.fleet.distributions import (
    MAX_QUANTITY,
    MIN_QUANTITY,
    Choices,
    Constant,
    Distribution,
    LogNormal,
    TruncatedNormal,
    Uniform,
)
from fedsim.scenario.settings import (
    AsWritten,
    BitDepth,
    GivenKeys,
    as_tuple,
    ascending,
    problem,
    refuse_repeats,
)

DISTRIBUTIONS = (
    "a number, [low, high] (uniform), {median, spread} (log-normal), {mean, std} (normal above"
    " zero) or {choices, weights}"
)
"""In words, what a quantity is written as."""
Number = Annotated[float, Field(ge=MIN_QUANTITY, le=MAX_QUANTITY), AsWritten()]
"""A size in MB, or a factor."""
_MAX_CHOICES = 1_000
Width = Annotated[float, Field(ge=0, le=MAX_QUANTITY), AsWritten()]
Weights = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1e9), AsWritten()], ...],
    BeforeValidator(as_tuple),
    Field(max_length=_MAX_CHOICES),
]

Range = Annotated[tuple[Number, Number], BeforeValidator(as_tuple), AfterValidator(ascending)]
"""[low, high], both included."""
Depths = Annotated[
    tuple[BitDepth, ...],
    BeforeValidator(as_tuple),
    Field(min_length=1),
    AfterValidator(refuse_repeats),
]


class MedianAndSpread(GivenKeys):
    """A log-normal distribution."""

    median: Number = Field(description="half of the devices have less, half more")
    spread: Width = Field(
        description="standard deviation of the natural logarithm; 0 is the median itself"
    )


class MeanAndStd(GivenKeys):
    """A normal distribution of which only what is above zero is left."""

    mean: Number = Field(description="mean of the whole distribution")
    std: Width = Field(
        description="standard deviation of the whole distribution; 0 is the mean itself"
    )


def _check_weights(values: tuple[Any, ...], weights: tuple[float, ...] | None) -> None:
    if weights is None:
        return
    if len(weights) != len(values):
        text = f"{len(weights)} weights, {len(values)} choices: list one weight for each choice"
        raise problem(text, "weights")
    if not any(weights):
        raise problem("all are zero: make one larger", "weights")


class NumberChoices(GivenKeys):
    """One of several numbers."""

    choices: Annotated[tuple[Number, ...], BeforeValidator(as_tuple)] = Field(
        min_length=1, max_length=_MAX_CHOICES, description="the numbers that devices have"
    )
    weights: Weights | None = Field(
        default=None, description="how often each is drawn, in proportion; null is all alike"
    )

    @model_validator(mode="after")
    def _check(self) -> NumberChoices:
        _check_weights(self.choices, self.weights)
        return self


class DepthChoices(GivenKeys):
    """One of several lists of bit depths."""

    choices: Annotated[tuple[Depths, ...], BeforeValidator(as_tuple)] = Field(
        min_length=1,
        max_length=_MAX_CHOICES,
        description="lists of bit depths, such as [[8], [4, 8]]",
    )
    weights: Weights | None = Field(
        default=None, description="how often each is drawn, in proportion; null is all alike"
    )

    @model_validator(mode="after")
    def _check(self) -> DepthChoices:
        _check_weights(self.choices, self.weights)
        return self


def _quantity_shape(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return "<range>"
    given = value if isinstance(value, Mapping) else getattr(type(value), "model_fields", None)
    if given is None:
        return "<number>"
    shapes = (
        ("<choices>", NumberChoices),
        ("<log-normal>", MedianAndSpread),
        ("<normal>", MeanAndStd),
    )
    return next((tag for tag, model in shapes if given.keys() & model.model_fields.keys()), None)


def _depths_shape(value: Any) -> str:
    return "<choices>" if isinstance(value, Mapping | DepthChoices) else "<depths>"


Quantity = Annotated[
    Annotated[Number, Tag("<number>")]
    | Annotated[Range, Tag("<range>")]
    | Annotated[MedianAndSpread, Tag("<log-normal>")]
    | Annotated[MeanAndStd, Tag("<normal>")]
    | Annotated[NumberChoices, Tag("<choices>")],
    Discriminator(_quantity_shape),
]
DepthQuantity = Annotated[
    Annotated[Depths, Tag("<depths>")] | Annotated[DepthChoices, Tag("<choices>")],
    Discriminator(_depths_shape),
]


def number_distribution(quantity: Any) -> Distribution:
    """Return what a checked `Quantity` stands for."""
    match quantity:
        case MedianAndSpread():
            return LogNormal(float(quantity.median), float(quantity.spread))
        case MeanAndStd():
            return TruncatedNormal(float(quantity.mean), float(quantity.std))
        case NumberChoices():
            return _choices(tuple(map(float, quantity.choices)), quantity.weights)
        case (low, high):
            return Uniform(float(low), float(high))
    return Constant(float(quantity))


def depths_distribution(quantity: Any) -> Distribution:
    """Return what a checked `DepthQuantity` stands for, bit depths in order."""
    if isinstance(quantity, DepthChoices):
        return _choices(tuple(tuple(sorted(d)) for d in quantity.choices), quantity.weights)
    return Constant(tuple(sorted(quantity)))


def _choices(values: tuple[Any, ...], weights: tuple[float, ...] | None) -> Choices:
    return Choices(values, (1.0,) * len(values) if weights is None else tuple(map(float, weights)))
