"""The checks behind the rules of `Scores`, as in `fedsim.protocol.checks`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedsim.protocol import messages as m
from fedsim.protocol.checks import (
    first_problem,
    problem_in_length,
    problem_in_workload,
    shortened,
)
from fedsim.protocol.known import Known

MAX_COUNT = 1 << 40
"""The most words or characters, and errors in them, of one device's clips."""
COUNTS = ("errors", "words", "char_errors", "chars")
LOOPS = ("looped", "looped_errors", "looped_words")
RARE = ("rare_errors", "rare_words")


def tested_clips(request: object, answer: m.Scores, known: Known) -> str:
    """1 to corpus.test_clips."""
    value = answer.clips
    return "" if 1 <= value <= known.clips else f"{value} test clips, of 1 to {known.clips}"


def lengths(request: m.Evaluation, answer: m.Scores, known: Known) -> str:
    """One value per model tested; empty where the model counts otherwise, or unless requested."""
    models = len(known.sizes)
    expected = {
        **dict.fromkeys(COUNTS, models * known.recognizes),
        "correct": models * (not known.recognizes),
        **dict.fromkeys(LOOPS, models * known.loops),
        **dict.fromkeys(RARE, models * known.recognizes * bool(request.rare_beyond)),
        **dict.fromkeys(("low", "high"), models),
    }
    found = (
        problem_in_length(getattr(answer, name), n, f"of {name}") for name, n in expected.items()
    )
    return next((problem for problem in found if problem), "")


def counts(request: object, answer: m.Scores, known: Known) -> str:
    """0 to 2^40."""
    values = (*answer.errors, *answer.words, *answer.char_errors, *answer.chars)
    return first_problem(
        values, lambda v: not 0 <= v <= MAX_COUNT, "a count of words or characters"
    )


def same_references(request: object, answer: m.Scores, known: Known) -> str:
    """Equal for all models: the references are."""
    for name, values in (("words", answer.words), ("chars", answer.chars)):
        if len(set(values)) > 1:
            return f"other {name} of the same references for each model, {shortened(values)}"
    return ""


def both_errors(request: object, answer: m.Scores, known: Known) -> str:
    """Both 0 or neither."""
    pairs = zip(answer.errors, answer.char_errors, strict=True)
    return first_problem(
        pairs, lambda pair: bool(pair[0]) != bool(pair[1]), "errors in words and in characters"
    )


def correct(request: object, answer: m.Scores, known: Known) -> str:
    """0 to `clips`."""
    of = f"the number of right clips among {answer.clips}"
    return first_problem(answer.correct, lambda v: not 0 <= v <= answer.clips, of)


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

    return first_problem(zip(answer.low, answer.high, strict=True), bad, "an interval")


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
    return first_problem(whole, bad, "clips that looped, with their errors and words, of all")


def rare(request: m.Evaluation, answer: m.Scores, known: Known) -> str:
    """0 to the words, equal for all models; of them 0 to the errors in words."""
    words = answer.rare_words
    if len(set(words)) > 1:
        return f"other rare words of the same references for each model, {shortened(words)}"

    def bad(model: tuple[int, ...]) -> bool:
        wrong, of, all_errors, all_words = model
        return not (0 <= of <= all_words and 0 <= wrong <= min(of, all_errors))

    whole = zip(answer.rare_errors, words, answer.errors, answer.words, strict=False)
    return first_problem(
        whole, bad, "rare words that were wrong, of all of them, with all errors and words"
    )


def clip_counts(request: m.Evaluation, answer: m.Scores, known: Known) -> str:
    """One value per clip and model; empty unless requested."""
    each = len(known.sizes) * answer.clips * request.clip_counts
    return problem_in_length(answer.clip_wrong, each, "errors of clips") or problem_in_length(
        answer.clip_of, each, "words of clips"
    )


def clip_values(request: m.Evaluation, answer: m.Scores, known: Known) -> str:
    """0 to 2^40; of a classifier 0 or 1, and 1."""
    if not known.recognizes:
        return first_problem(
            answer.clip_wrong, lambda v: v not in (0, 1), "a clip's errors"
        ) or first_problem(answer.clip_of, lambda v: v != 1, "a clip's number of classes")
    counts = (*answer.clip_wrong, *answer.clip_of)
    return first_problem(counts, lambda v: not 0 <= v <= MAX_COUNT, "a clip's errors or words")


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


def tested_workload(request: m.Evaluation, answer: m.Scores, known: Known) -> str:
    """Seconds of audio, 0 to 10^9; empty unless requested."""
    return problem_in_workload(answer.workload, 1 * request.workload)
