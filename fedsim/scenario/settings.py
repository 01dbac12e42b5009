"""What every section of a scenario is made of: strict, frozen classes, and errors with a place."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints
from pydantic_core import PydanticCustomError


class Settings(BaseModel):
    """A section: unknown keys are refused, and values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def as_tuple(value: Any) -> Any:
    """Return a list as a tuple, anything else as it is."""
    # YAML and JSON have lists only; strict models would refuse them where a tuple is meant.
    return tuple(value) if isinstance(value, list) else value


def one_or_more(value: Any) -> Any:
    """Return a text as a tuple of one, a list as a tuple."""
    return (value,) if isinstance(value, str) else as_tuple(value)


def problem(text: str, *at: str | int) -> PydanticCustomError:
    """Return an error whose place is `at` below the model that raises it."""
    return PydanticCustomError("scenario", "{text}", {"text": text, "at": at})


def refuse_repeats(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values; raises if one is listed twice."""
    for i, value in enumerate(values):
        if value in values[:i]:
            raise problem(f"{value!r} is listed twice: leave one out", i)
    return values


Text = Annotated[str, StringConstraints(min_length=1)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(as_tuple)]
Words = Annotated[
    tuple[Text, ...], BeforeValidator(one_or_more, json_schema_input_type=str | list[str])
]
