"""What each field of an answer may hold: units, bounds, and how it relates to what is known.

`RULES` is the whole table. The server checks every answer against it in one place (`broken_rule`)
before anything else reads it, since a device may be broken or lie. Answers of secure aggregation
have their rules in `fedsim.privacy.secure_aggregation.protocol`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedsim.protocol import checks, score_checks
from fedsim.protocol import messages as m
from fedsim.protocol.known import Known


@dataclass(frozen=True)
class Rule:
    """One rule about some fields of an answer; the docstring of its check says what they hold."""

    fields: tuple[str, ...]
    check: Callable[[Any, Any, Known], str]
    """f(request, answer, known) -> what the answer holds instead, to follow "sent"; "" if it keeps
    the rule."""


RULES: dict[type, tuple[Rule, ...]] = {
    m.Summary: (
        Rule(("budget_bytes",), checks.budget),
        Rule(("bit_depths",), checks.runtime_depths),
        Rule(("clips",), checks.tuning_clips),
        Rule(("depths",), checks.table_depths),
        Rule(("sensitivity",), checks.profile_size),
        Rule(("sensitivity",), checks.profile_values),
        Rule(("quantiles",), checks.quantiles),
        Rule(("workload",), checks.tuning_workload),
        Rule(("language",), checks.language),
    ),
    m.Receipt: (
        Rule(("file_bytes",), checks.sizes),
        Rule(("ranges",), checks.ranges),
        Rule(("blobs",), checks.layer_names),
    ),
    m.Scores: (
        Rule(("clips",), score_checks.tested_clips),
        Rule(("file_bytes",), checks.sizes),
        Rule(
            (
                *score_checks.COUNTS,
                "correct",
                *score_checks.LOOPS,
                *score_checks.RARE,
                "low",
                "high",
            ),
            score_checks.lengths,
        ),
        Rule(("errors", "words", "char_errors", "chars"), score_checks.counts),
        Rule(("words", "chars"), score_checks.same_references),
        Rule(("errors", "char_errors"), score_checks.both_errors),
        Rule(("correct",), score_checks.correct),
        Rule(("low", "high"), score_checks.interval),
        Rule(score_checks.LOOPS, score_checks.looped),
        Rule(score_checks.RARE, score_checks.rare),
        Rule(("clip_wrong", "clip_of"), score_checks.clip_counts),
        Rule(("clip_wrong", "clip_of"), score_checks.clip_values),
        Rule(("clip_wrong", "clip_of"), score_checks.clip_sums),
        Rule(("workload",), score_checks.tested_workload),
    ),
}
"""Type of an answer -> its rules, in the order in which they are checked: lengths before values.

Three facts are checked by the server alone: that the key is the sender's, that a payload is one of
the scenario's release, and that layers that are named exist."""


def broken_rule(request: m.Message, answer: m.Message, known: Known) -> str:
    """Return what in an answer breaks the first rule that it breaks, to follow "sent"; else ""."""
    found = (rule.check(request, answer, known) for rule in RULES[type(answer)])
    return next((problem for problem in found if problem), "")
