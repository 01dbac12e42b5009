"""What the sections of a scenario share: strict, frozen classes, errors that have a location, and
settings that name an entry of a registry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
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

from fedsim.base.text import composed
from fedsim.errors import nearest, quoted
from fedsim.registry import Registry


class Settings(BaseModel):
    """One section. Unknown keys and values of another type are rejected."""

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
    # YAML and JSON have lists only, which strict models reject where they want a tuple.
    return tuple(value) if isinstance(value, list) else value


def one_or_more(value: Any) -> Any:
    """Return a text as a tuple of one element, a list as a tuple, anything else as it is."""
    return (value,) if isinstance(value, str) else as_tuple(value)


def problem(text: str, *at: str | int) -> PydanticCustomError:
    """Return an error located at the keys `at`, relative to the section that raises it."""
    return PydanticCustomError("scenario", "{text}", {"text": text, "at": at})


def ascending(ends: tuple[float, float]) -> tuple[float, float]:
    """Return the ends of a range; raise `PydanticCustomError` if the first is the larger."""
    low, high = ends
    if low > high:
        raise problem(f"[{low:g}, {high:g}] runs down: write the lower number first")
    return ends


def refuse_repeats(values: tuple[Any, ...], *at: str | int) -> tuple[Any, ...]:
    """Return the values; raise `PydanticCustomError` at the first one that is listed twice.

    `at` are the keys of the list, relative to the section that checks it.
    """
    seen: set[Any] = set()
    unhashable: list[Any] = []
    for i, value in enumerate(values):
        try:
            repeated = value in seen
            seen.add(value)
        except TypeError:  # a list or a mapping
            repeated = value in unhashable
            unhashable.append(value)
        if repeated:
            raise problem(f"{quoted(value)} is listed twice: remove one", *at, i)
    return values


MAX_ITEMS = 50_000
"""Items of any list."""
Text = Annotated[str, StringConstraints(min_length=1, max_length=1_000)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(as_tuple), Field(max_length=MAX_ITEMS)]
ClientKey = Annotated[Text, AfterValidator(composed)]
"""The key of a client, in Unicode's composed form (NFC), as corpora give it."""
ClientKeys = Annotated[
    tuple[ClientKey, ...], BeforeValidator(as_tuple), Field(max_length=MAX_ITEMS)
]
BitDepth = Annotated[int, Field(ge=2, le=16)]
Words = Annotated[
    tuple[Text, ...],
    BeforeValidator(one_or_more, json_schema_input_type=str | list[str]),
    Field(max_length=MAX_ITEMS),
]


@dataclass(frozen=True, eq=False)
class OneOf:
    """A text that names an entry of a registry; the JSON Schema lists the names.

    The schema accepts other names too: the plug-in that adds one may not be installed where the
    file is edited.
    """

    registry: Registry
    more: Mapping[str, str] = field(default_factory=dict)
    """Further names, which the registry does not hold -> summary."""

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

    def mistake(self, name: str) -> str | None:
        """Return what is wrong with a name, and the nearest known one; None for a known name."""
        if name in self.more or name in self.registry:
            return None
        return f"there is no {self.registry.family} {quoted(name)}: {nearest(name, self.names())}"

    def _check(self, name: str) -> str:
        mistake = self.mistake(name)
        if mistake is not None:
            raise problem(mistake)
        return name


def named_choices(
    section: type[BaseModel], keys: tuple[str, ...] = ()
) -> Iterator[tuple[str, OneOf]]:
    """Yield (dotted key, choices) for every setting of a section that names a registry entry.

    Sections inside it are searched too, once where a setting is one or a list; `keys` lead to it.
    """
    for name, field_info in section.model_fields.items():
        inner: list[type[BaseModel]] = []
        for part in (*field_info.metadata, *_parts(field_info.annotation)):
            if isinstance(part, OneOf):
                yield ".".join((*keys, name)), part
            elif isinstance(part, type) and issubclass(part, BaseModel) and part not in inner:
                inner.append(part)
                yield from named_choices(part, (*keys, name))


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield an annotation and everything inside it, such as the items of a tuple."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)
