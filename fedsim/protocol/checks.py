"""The checks behind the rules of answers (`fedsim.protocol.rules`).

Each is f(request, answer, known) -> what the answer holds instead, to follow "sent"; "" if it keeps
the rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fedsim.protocol import messages as m
from fedsim.protocol.known import Known
from fedsim.quant.quantiles import QUANTILES

MAX_BYTES = 1 << 50
"""The largest budget of a device, in bytes: a petabyte."""
MAX_SECONDS = 1e9
"""The most seconds of audio, or tokens, of one device's clips."""
MAX_LANGUAGE = 48
"""Characters of the name of a language."""
_LARGEST = float(np.finfo(np.float32).max)


def shortened(value: object) -> str:
    """Return a value as text of at most 60 characters."""
    return f"{value!r:.60}"


def problem_in_length(values: Sequence[object], expected: int, noun: str) -> str:
    """Return how many values there are if they are not as many as expected; else ""."""
    return "" if len(values) == expected else f"{len(values)} {noun}, where {expected} fit"


def first_problem(values: Iterable[Any], bad: Callable[[Any], bool], noun: str) -> str:
    """Return the first bad value with its noun; "" if there is none."""
    return next((f"{shortened(value)} as {noun}" for value in values if bad(value)), "")


def _no_number(value: float) -> bool:
    return not abs(value) <= _LARGEST


def _depths(depths: tuple[int, ...], legal: tuple[int, ...], noun: str) -> str:
    ascending = all(a < b for a, b in pairwise(depths))
    if ascending and set(depths) <= set(legal):
        return ""
    return f"{shortened(depths)} as {noun}, where the scenario allows {legal}"


# ------------------------------------------------------------------------------- Summary


def budget(request: m.SenseRequest, answer: m.Summary, known: Known) -> str:
    """Bytes, 1 to 2^50."""
    value = answer.budget_bytes
    return "" if 1 <= value <= MAX_BYTES else f"a budget of {value} bytes"


def runtime_depths(request: m.SenseRequest, answer: m.Summary, known: Known) -> str:
    """Some of the scenario's bit depths, ascending."""
    if not answer.bit_depths:
        return "no bit depths"
    return _depths(answer.bit_depths, known.depths, "the bit depths of its runtime")


def tuning_clips(request: m.SenseRequest, answer: m.Summary, known: Known) -> str:
    """0 to corpus.tuning_clips."""
    value = answer.clips
    return "" if 0 <= value <= known.clips else f"{value} tuning clips, of at most {known.clips}"


def profile_size(request: m.SenseRequest, answer: m.Summary, known: Known) -> str:
    """A value per layer, of a table one per layer and depth; empty unless requested."""
    expected = known.layers * max(1, len(answer.depths)) * bool(request.measure) * known.plain
    return problem_in_length(answer.sensitivity, expected, "values of a layer profile")


def profile_values(request: m.SenseRequest, answer: m.Summary, known: Known) -> str:
    """Finite in float32; a loss is at least 0."""
    low = 0.0 if known.table else -_LARGEST
    noun = "a loss" if known.table else "a sensitivity"
    return first_problem(answer.sensitivity, lambda v: _no_number(v) or v < low, noun)


def table_depths(request: m.SenseRequest, answer: m.Summary, known: Known) -> str:
    """With a table of losses the scenario's bit depths, ascending; else empty."""
    expected = known.depths if known.table and answer.sensitivity else ()
    if set(answer.depths) == set(expected) and len(answer.depths) == len(expected):
        return _depths(answer.depths, expected, "the depths of a table")
    return f"{shortened(answer.depths)} as the depths of a table, where {expected} fit"


def quantiles(request: m.SenseRequest, answer: m.Summary, known: Known) -> str:
    """Finite in float32, rising in each layer; empty unless requested."""
    each, values = len(QUANTILES), answer.quantiles
    return problem_in_length(values, known.layers * each * request.quantiles, "quantiles") or next(
        (
            f"quantiles of layer {i // each} that do not rise"
            for i, (a, b) in enumerate(pairwise(values))
            if (i + 1) % each and not a <= b
        ),
        first_problem(values, _no_number, "a quantile"),
    )


def language(request: m.SenseRequest, answer: m.Summary, known: Known) -> str:
    """At most 48 printable characters; empty unless model files differ by language."""
    language = answer.language
    if len(language) > MAX_LANGUAGE or not language.isprintable():
        return f"{shortened(language)} as its language"
    return "its language, which was not requested" if language and not known.spoken else ""


def tuning_workload(request: m.SenseRequest, answer: m.Summary, known: Known) -> str:
    """Seconds of audio and a number of tokens, 0 to 10^9; empty unless requested."""
    return problem_in_workload(answer.workload, 2 * request.workload)


def problem_in_workload(values: tuple[float, ...], expected: int) -> str:
    """Return what of a workload is out of range, or that it has not as many numbers as expected."""
    return problem_in_length(values, expected, "numbers of a workload") or first_problem(
        values, lambda v: not 0 <= v <= MAX_SECONDS, "a workload"
    )


# ------------------------------------------------------------------------------- Receipt


def sizes(request: object, answer: m.Receipt | m.Scores, known: Known) -> str:
    """The exact bytes of each model, full precision first."""
    return problem_in_length(answer.file_bytes, len(known.sizes), "sizes of models") or next(
        (
            f"{sent:,} bytes as the size of a model of {exact:,}"
            for sent, exact in zip(answer.file_bytes, known.sizes, strict=True)
            if sent != exact
        ),
        "",
    )


def ranges(request: m.Delivery, answer: m.Receipt, known: Known) -> str:
    """Low <= 0 <= high with a width where calibration found a range, else NaN; empty unless
    requested."""
    each, values = 2 * known.layers, answer.ranges
    expected = each * len(known.static) * request.return_models
    problem = problem_in_length(values, expected, "ends of activation ranges")
    if problem:
        return problem
    for place, (low, high) in enumerate(zip(values[::2], values[1::2], strict=True)):
        if math.isnan(low) and math.isnan(high):
            continue
        if not known.static[2 * place // each]:
            return f"{low:g} to {high:g} as a range, where the calibration has none"
        if not (-_LARGEST <= low <= 0 <= high <= _LARGEST and low < high):
            return f"{low:g} to {high:g} as a range, which must contain 0 and have a width"
    return ""


def layer_names(request: m.Delivery, answer: m.Receipt, known: Known) -> str:
    """32 bytes per layer of each model that the device rounded; empty unless requested."""
    rounded = sum(candidate.rounded_here for candidate in request.candidates)
    expected = known.layers * rounded * request.return_models * m.HASH_BYTES
    return problem_in_length(answer.blobs, expected, "bytes of names of layers")
