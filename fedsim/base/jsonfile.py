"""Reading JSON files of which every value has its type, or one sentence says that it has not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from fedsim.errors import FedsimError


def read_json_as(kind: Any, path: Path, remedy: str) -> Any:
    """Return what a JSON file holds, as a type that pydantic knows.

    Types are strict: no text is taken for a number. Numbers are finite.

    Args:
        kind: the type, such as `dict[str, float]`, a dataclass or a TypedDict.
        path: the file.
        remedy: what to do if it holds anything else, for the error.

    Raises:
        FedsimError: if the file cannot be read, or holds anything else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FedsimError(
            f"{path}: the file cannot be read ({reason}): restore it, or allow reading"
        ) from error
    try:
        json.loads(content, parse_constant=_refuse, parse_float=_finite)
        return TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise FedsimError(
            f"{path}: the file is damaged, or of another version of fedsim ({what:.120}): {remedy}"
        ) from None
    except (ValueError, RecursionError):
        raise FedsimError(f"{path}: the file is damaged: {remedy}") from None


def _refuse(word: str) -> NoReturn:
    raise ValueError(word)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value
