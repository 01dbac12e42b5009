"""What every section of a scenario is made of: strict, frozen classes, and errors with a place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidatorFunctionWrapHandler,
    model_serializer,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fedsim.errors import nearest
from fedsim.registry import Registry


class Settings(BaseModel):
    """A section: unknown keys are refused, and values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class GivenKeys(Settings):
    """A mapping of which only the keys that were given are written."""

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in write(self).items() if key in self.model_fields_set}


class AsWritten:
    """A number that is checked, and stays what it was: 6 is written as 6, and not as 6.0."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            _unchanged,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value),
        )


def _unchanged(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    check(value)
    return value


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
BitDepth = Annotated[int, Field(ge=2, le=16)]
Words = Annotated[
    tuple[Text, ...], BeforeValidator(one_or_more, json_schema_input_type=str | list[str])
]


@dataclass(frozen=True)
class OneOf:
    """A text that names an entry of a registry; the JSON Schema lists the names.

    Editors may offer these names, and must not refuse others: a plug-in that adds one need not be
    installed where a file is edited.
    """

    registry: Registry
    more: Mapping[str, str] = field(default_factory=dict)
    """Names that are no entries -> what they mean."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"enum": self.names()}, handler(schema)]}

    def names(self) -> list[str]:
        """Return every name, those of installed plug-ins included."""
        return [*self.more, *self.registry.names()]

    def describe(self) -> dict[str, str]:
        """Return name -> summary."""
        return {**self.more, **self.registry.describe()}

    def _check(self, name: str) -> str:
        if name not in self.more and name not in self.registry:
            hint = nearest(name, self.names())
            raise problem(f"there is no {self.registry.family} {name!r}: {hint}")
        return name
