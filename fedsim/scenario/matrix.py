"""A matrix: one scenario that stands for every combination of some settings.

matrix:
  clients.budget_mb: [58, 60, 62]
  quantization.sensitivity: [median, mean]

makes six scenarios. Keys are dotted, list items by index, as in `--set`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from fedsim.base.yamltree import item_index
from fedsim.errors import FedsimError, quoted
from fedsim.scenario.explain import sentences
from fedsim.scenario.schema import Scenario

MAX_CELLS = 1_000
"""More combinations than this are a mistake more often than a study."""


@dataclass(frozen=True)
class MatrixCell:
    """One combination: the settings that make it, and the scenario without a matrix."""

    settings: dict[str, Any]
    scenario: Scenario


def expand(scenario: Scenario) -> tuple[MatrixCell, ...]:
    """Return every combination, the last key varying fastest; one cell where there is no matrix.

    Raises:
        FedsimError: for a key that is no setting, a value that it cannot have, and more than
            `MAX_CELLS` combinations.
    """
    matrix = scenario.matrix
    cells = math.prod(len(values) for values in matrix.values())
    if cells > MAX_CELLS:
        raise FedsimError(
            f"matrix: {' x '.join(str(len(v)) for v in matrix.values())} combinations are "
            f"{cells:,}, more than {MAX_CELLS:,}: remove some values"
        )
    plain = scenario.model_dump(exclude={"matrix"})
    if "bit_depths" not in scenario.clients.model_fields_set:
        del plain["clients"]["bit_depths"]  # they follow the format, which may vary
    plain["methods"] = [method.model_dump(exclude_unset=True) for method in scenario.methods]
    return tuple(
        _cell(plain, dict(zip(matrix, values, strict=True))) for values in product(*matrix.values())
    )


def _cell(plain: dict[str, Any], settings: dict[str, Any]) -> MatrixCell:
    data: Any = plain
    for key, value in settings.items():
        data = _changed(data, key.split("."), value, key)
    try:
        return MatrixCell(settings, Scenario.model_validate(data))
    except ValidationError as error:
        words = ", ".join(f"{k}={quoted(v)}" for k, v in settings.items())
        raise FedsimError(f"matrix: {words}: {sentences(error, Scenario)[0]}") from None


def _changed(data: Any, path: list[str], value: Any, key: str) -> Any:
    """Return `data` with `value` at `path`; what is not on the path is shared, not copied."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(data, dict) and (step in data or rest == []):
        return {**data, step: _changed(data.get(step), rest, value, key)}
    i = item_index(step, len(data)) if isinstance(data, list | tuple) else None
    if i is not None:
        return (*data[:i], _changed(data[i], rest, value, key), *data[i + 1 :])
    raise FedsimError(
        f"matrix: {key}: this scenario has no such setting, there is no {quoted(step)}:"
        f" correct the key"
    )
