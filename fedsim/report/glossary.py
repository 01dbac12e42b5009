"""The words of a report that are names of methods, with their meanings."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fedsim.quant.allocation import ALLOCATORS
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.quant.rounding import MOMENTS, ROUNDINGS
from fedsim.quant.runtimes import RUNTIMES
from fedsim.results.lines import Line
from fedsim.scenario.methods import FULL_PRECISION

_INTERVAL = (
    "95 % interval",
    "the range that chance leaves open: with other clips and other clients of the same kind, the"
    " result may lie anywhere in it",
)


def words_of(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Return the parts of the lines' method names with their meanings."""
    meanings: dict[str, str] = {}
    for line in lines:
        if line.is_full_precision:
            meanings[FULL_PRECISION] = "the full-precision model, for comparison"
    for line in lines:
        if not line.is_full_precision:
            meanings.setdefault(line.allocation, ALLOCATORS[line.allocation].meaning)
    for line in lines:
        if line.calibration in CALIBRATORS:
            meanings.setdefault(line.calibration, CALIBRATORS[line.calibration].meaning)
    for row in (line.rows[0] for line in lines if not line.is_full_precision):
        if row.rounding in ROUNDINGS:
            meanings.setdefault(row.rounding, ROUNDINGS[row.rounding].meaning)
        if row.moments in MOMENTS:
            meanings.setdefault(row.moments, MOMENTS[row.moments])
        if row.runtime in RUNTIMES:
            meanings.setdefault(row.runtime, RUNTIMES[row.runtime].meaning)
    return list(meanings.items())


def words_in(sentence: str, lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Return those words of the lines' method names that are parts of a name in a sentence, and
    what an interval is if it has one."""
    names = re.findall(r"\S+/\S+", sentence)
    parts = {part.strip(".,:;") for name in names for part in name.split("/")}
    found = [(word, meaning) for word, meaning in words_of(lines) if word in parts]
    return [*found, _INTERVAL] if _INTERVAL[0] in sentence else found
