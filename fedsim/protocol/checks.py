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
MAX_COUNT = 1 << 40
"""The most words or characters, and errors in them, of one device's clips."""
MAX_LANGUAGE = 48
"""Characters of the name of a language."""
COUNTS = ("errors", "words", "char_errors", "chars")
LOOPS = ("looped", "looped_errors", "looped_words")
_LARGEST = float(np.finfo(np.float32).max)


def _short(value: object) -> str:
    return f"{value!r:.60}"


def _counted(values: Sequence[object], expected: int, noun: str) -> str:
    return "" if len(values) == expected else f"{len(values)} {noun}, where {expected} fit"


def _first(values: Iterable[Any], bad: Callable[[Any], bool], noun: str) -> str:
    """Return the first bad value with its noun, "" if there is none."""
    return next((f"{_short(value)} as {noun}" for value in values if bad(value)), "")


def _no_number(value: float) -> bool:
    return not abs(value) <= _LARGEST


def _depths(depths: tuple[int, ...], legal: tuple[int, ...], noun: str) -> str:
    ascending = all(a < b for a, b in pairwise(depths))
    if ascending and set(depths) <= set(legal):
        return ""
    return f"{_short(depths)} as {noun}, where the scenario allows {legal}"


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
    return _counted(answer.sensitivity, expected, "values of a layer profile")


def profile_values(request: m.SenseRequest, answer: m.Summary, known: Known) -> str:
    """Finite in float32; a loss is at least 0."""
    low = 0.0 if known.table else -_LARGEST
    noun = "a loss" if known.table else "a sensitivity"
    return _first(answer.sensitivity, lambda v: _no_number(v) or v < low, noun)


def table_depths(request: m.SenseRequest, answer: m.Summary, known: Known) -> str:
    """With a table of losses the scenario's bit depths, ascending; else empty."""
    expected = known.depths if known.table and answer.sensitivity else ()
    if set(answer.depths) == set(expected) and len(answer.depths) == len(expected):
        return _depths(answer.depths, expected, "the depths of a table")
    return f"{_short(answer.depths)} as the depths of a table, where {expected} fit"


def quantiles(request: m.SenseRequest, answer: m.Summary, known: Known) -> str:
    """Finite in float32, rising in each layer; empty unless requested."""
    each, values = len(QUANTILES), answer.quantiles
    return _counted(values, known.layers * each * request.quantiles, "quantiles") or next(
        (
            f"quantiles of layer {i // each} that do not rise"
            for i, (a, b) in enumerate(pairwise(values))
            if (i + 1) % each and not a <= b
        ),
        _first(values, _no_number, "a quantile"),
    )


def language(request: m.SenseRequest, answer: m.Summary, known: Known) -> str:
    """At most 48 printable characters; empty unless model files differ by language."""
    language = answer.language
    if len(language) > MAX_LANGUAGE or not language.isprintable():
        return f"{_short(language)} as its language"
    return "its language, which was not requested" if language and not known.spoken else ""


def tuning_workload(request: m.SenseRequest, answer: m.Summary, known: Known) -> str:
    """Seconds of audio and a number of tokens, 0 to 10^9; empty unless requested."""
    return _workload(answer.workload, 2 * request.workload)


def tested_workload(request: m.Evaluation, answer: m.Scores, known: Known) -> str:
    """Seconds of audio, 0 to 10^9; empty unless requested."""
    return _workload(answer.workload, 1 * request.workload)


def _workload(values: tuple[float, ...], expected: int) -> str:
    return _counted(values, expected, "numbers of a workload") or _first(
        values, lambda v: not 0 <= v <= MAX_SECONDS, "a workload"
    )


# ------------------------------------------------------------------------------- Receipt, Scores


def sizes(request: object, answer: m.Receipt | m.Scores, known: Known) -> str:
    """The exact bytes of each model, full precision first."""
    return _counted(answer.file_bytes, len(known.sizes), "sizes of models") or next(
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
    problem = _counted(values, expected, "ends of activation ranges")
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
    return _counted(answer.blobs, expected, "bytes of names of layers")


def tested_clips(request: object, answer: m.Scores, known: Known) -> str:
    """1 to corpus.test_clips."""
    value = answer.clips
    return "" if 1 <= value <= known.clips else f"{value} test clips, of 1 to {known.clips}"


def lengths(request: object, answer: m.Scores, known: Known) -> str:
    """One value per model tested; empty where the model counts otherwise."""
    models = len(known.sizes)
    expected = {
        **dict.fromkeys(COUNTS, models * known.recognizes),
        "correct": models * (not known.recognizes),
        **dict.fromkeys(LOOPS, models * known.loops),
        **dict.fromkeys(("low", "high"), models),
    }
    found = (_counted(getattr(answer, name), n, f"of {name}") for name, n in expected.items())
    return next((problem for problem in found if problem), "")


def counts(request: object, answer: m.Scores, known: Known) -> str:
    """0 to 2^40."""
    values = (*answer.errors, *answer.words, *answer.char_errors, *answer.chars)
    return _first(values, lambda v: not 0 <= v <= MAX_COUNT, "a count of words or characters")


def same_references(request: object, answer: m.Scores, known: Known) -> str:
    """Equal for all models: the references are."""
    for name, values in (("words", answer.words), ("chars", answer.chars)):
        if len(set(values)) > 1:
            return f"other {name} of the same references for each model, {_short(values)}"
    return ""


def both_errors(request: object, answer: m.Scores, known: Known) -> str:
    """Both 0 or neither."""
    pairs = zip(answer.errors, answer.char_errors, strict=True)
    return _first(
        pairs, lambda pair: bool(pair[0]) != bool(pair[1]), "errors in words and in characters"
    )


def correct(request: object, answer: m.Scores, known: Known) -> str:
    """0 to `clips`."""
    of = f"the number of right clips among {answer.clips}"
    return _first(answer.correct, lambda v: not 0 <= v <= answer.clips, of)


def _counted_of(request: m.Evaluation, answer: m.Scores) -> tuple[tuple[int, ...], ...]:
    """Return the errors that the requested metric counts, and what they are errors of."""
    if request.metric == "cer":
        return answer.char_errors, answer.chars
    return answer.errors, answer.words


def interval(request: m.Evaluation, answer: m.Scores, known: Known) -> str:
    """0 <= low <= high, of an accuracy at most 1; both NaN where no reference has a word."""
    top = math.inf if known.recognizes else 1.0
    nothing = not known.recognizes or _counted_of(request, answer)[1][:1] in ((), (0,))

    def bad(ends: tuple[float, float]) -> bool:
        low, high = ends
        if math.isnan(low) and math.isnan(high):
            return not nothing
        return not 0 <= low <= high <= top or math.isinf(high)

    return _first(zip(answer.low, answer.high, strict=True), bad, "an interval")


def looped(request: m.Evaluation, answer: m.Scores, known: Known) -> str:
    """At most `clips`, and of the requested metric its errors and words or characters; without a
    clip that looped, none."""
    columns = (answer.looped, answer.looped_errors, answer.looped_words)

    def bad(model: tuple[int, ...]) -> bool:
        looped, errors, words, all_errors, all_words = model
        if not 0 <= looped <= answer.clips or (not looped and (errors or words)):
            return True
        return not (0 <= errors <= all_errors and 0 <= words <= all_words)

    whole = zip(*columns, *_counted_of(request, answer), strict=False)
    return _first(whole, bad, "clips that looped, with their errors and words, of all")


def clip_counts(request: m.Evaluation, answer: m.Scores, known: Known) -> str:
    """One value per clip and model; empty unless requested."""
    each = len(known.sizes) * answer.clips * request.clip_counts
    return _counted(answer.clip_wrong, each, "errors of clips") or _counted(
        answer.clip_of, each, "words of clips"
    )


def clip_values(request: m.Evaluation, answer: m.Scores, known: Known) -> str:
    """0 to 2^40; of a classifier 0 or 1, and 1."""
    if not known.recognizes:
        return _first(answer.clip_wrong, lambda v: v not in (0, 1), "a clip's errors") or _first(
            answer.clip_of, lambda v: v != 1, "a clip's number of classes"
        )
    counts = (*answer.clip_wrong, *answer.clip_of)
    return _first(counts, lambda v: not 0 <= v <= MAX_COUNT, "a clip's errors or words")


def clip_sums(request: m.Evaluation, answer: m.Scores, known: Known) -> str:
    """They add up to the counts of each model, of the requested metric; the words or characters of
    a clip are equal for all."""
    if not request.clip_counts:
        return ""
    n = answer.clips
    right = [n - c for c in answer.correct]
    counted: tuple[Sequence[int], ...] = (right, [n] * len(right))
    wrong, of = _counted_of(request, answer) if known.recognizes else counted
    first = answer.clip_of[:n]
    for i, sums in enumerate(zip(wrong, of, strict=True)):
        place = slice(i * n, (i + 1) * n)
        if (sum(answer.clip_wrong[place]), sum(answer.clip_of[place])) != sums:
            return f"counts of clips that do not add up to {sums[0]} errors of {sums[1]}"
        if answer.clip_of[place] != first:
            return "other words of the same clips for each model"
    return ""
