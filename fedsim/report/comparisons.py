"""The questions of a report, and the pairs of models whose comparison answers them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedsim.quant.allocation import ALLOCATORS, PAPER
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.quant.rounding import ROUNDINGS
from fedsim.quant.runtimes import EMULATED
from fedsim.results.labels import RUN, TUNING_CLIPS, heading, settings_label
from fedsim.results.lines import Source
from fedsim.results.rates import PartLine, lines_of
from fedsim.results.runs import Part
from fedsim.scenario.methods import FULL_PRECISION, NOBODY


@dataclass(frozen=True)
class Question:
    """A question, and the names of its two sides for where answers are counted."""

    text: str
    first: str
    second: str


OWN_CLIPS = Question(
    "Does it help to tune on a user's own clips?", "own clips", "the clips of others"
)
LAYERS = Question(
    "Does a bit depth for each layer beat one depth for all?",
    "a depth for each layer",
    "one depth for all",
)
ORDER = Question(
    "Does it matter which layers keep more bits?",
    "the chosen order",
    "a random or reversed one",
)
WAY = Question("Is there a better way to allocate bits?", PAPER, "another way")
ROUNDING = Question(
    "Does it matter how weights are rounded?", "the more careful way", "the simpler one"
)
MOMENTS = Question("Does it help to round on a user's own clips?", "own clips", "public clips")
TOGETHER = Question(
    "Do plan and rounding together beat the paper's?", "another plan and rounding", "the paper's"
)
CALIBRATION = Question(
    "Does it matter how activation ranges are set?", "the more careful way", "the simpler one"
)
RUNTIME = Question(
    "Does the exported file recognize what the emulation does?",
    "the exported file",
    "the emulation",
)
COST = Question("What does the small size cost?", "the compressed model", "full precision")

_SIMPLEST = "nearest"


@dataclass(frozen=True)
class Pair:
    """Two lines to compare, with names of both for a table, and longer ones for a sentence."""

    question: Question
    settings: str
    first: PartLine
    second: PartLine
    names: tuple[str, str]
    spoken: tuple[str, str]


def pairs_of(parts: Sequence[Part]) -> list[Pair]:
    """Return all pairs by question: those within each part, and those between parts."""
    within = [pair for part in parts for pair in _within(lines_of(part), part.label)]
    pairs = [*within, *_between(parts)]
    order = [TOGETHER, OWN_CLIPS, LAYERS, ORDER, WAY, ROUNDING, MOMENTS, CALIBRATION, RUNTIME, COST]
    order += [q for q in dict.fromkeys(pair.question for pair in pairs) if q not in order]
    return sorted(pairs, key=lambda pair: order.index(pair.question))


def _within(lines: Sequence[PartLine], settings: str) -> Iterator[Pair]:
    line_of = {(line.method, line.source): line for line in lines}
    own = [x for x in lines if x.source is not Source.OTHER and not x.is_full_precision]
    planned = [x for x in own if _role(x) == "method" and not _is_control(x)]
    for line in own:
        if (line.method, Source.OTHER) in line_of:
            yield _pair(OWN_CLIPS, settings, line, line_of[line.method, Source.OTHER])
    for line in planned:
        for other in (x for x in own if _way(x)[1:] == _way(line)[1:]):
            if _role(other) == "baseline":
                yield _pair(LAYERS, settings, line, other)
            elif line.allocation == PAPER and _is_control(other):
                yield _pair(ORDER, settings, line, other)
            elif line.allocation == PAPER != other.allocation:
                yield _pair(WAY, settings, line, other)
    yield from (_pair(TOGETHER, settings, *pair) for pair in _beside_the_paper(planned))
    yield from (_pair(ROUNDING, settings, *pair) for pair in _roundings(own))
    yield from (_pair(MOMENTS, settings, *pair) for pair in _moments(own))
    yield from (_pair(CALIBRATION, settings, *pair) for pair in _calibrations(own))
    yield from (_pair(RUNTIME, settings, *pair) for pair in _runtimes(own))
    for line in planned:
        if (FULL_PRECISION, Source.NOBODY) in line_of:
            yield _pair(COST, settings, line, line_of[FULL_PRECISION, Source.NOBODY])


def _way(line: PartLine) -> tuple[str, str, str, str, str]:
    """Return name of the plan, runtime, calibration, rounding and moments of a line."""
    row = line.rows[0]
    return line.method.split("/")[0], row.runtime, row.calibration, row.rounding, row.moments


def _beside_the_paper(planned: Sequence[PartLine]) -> Iterator[tuple[PartLine, PartLine]]:
    """Yield each line that has another allocation and another rounding than a line of the paper's
    plan and rounding, with that line."""
    for paper in planned:
        if paper.allocation == PAPER and paper.rows[0].rounding == _SIMPLEST:
            yield from (
                (line, paper)
                for line in planned
                if line.allocation != PAPER
                and line.rows[0].rounding != _SIMPLEST
                and line.rows[0].runtime == paper.rows[0].runtime
            )


def _roundings(lines: Sequence[PartLine]) -> Iterator[tuple[PartLine, PartLine]]:
    """Yield each rounding with every simpler one, all else equal; own moments have questions of
    their own."""
    for line in lines:
        *way, rounding, moments = _way(line)
        for base in lines:
            *base_way, base_rounding, _ = _way(base)
            same = base_way == way and moments in (NOBODY, "public")
            if same and _care(base_rounding) < _care(rounding):
                yield line, base


def _care(rounding: str) -> int:
    """Return how careful a rounding is: the paper's least, one that reads moments most."""
    return 0 if rounding == _SIMPLEST else 1 + ROUNDINGS[rounding].reads_moments


def _moments(lines: Sequence[PartLine]) -> Iterator[tuple[PartLine, PartLine]]:
    """Yield each line that rounds on own clips with the one that rounds on public ones."""
    for line in lines:
        *way, whose = _way(line)
        if whose in ("own", "blend"):
            yield from ((line, x) for x in lines if _way(x) == (*way, "public"))


def _calibrations(lines: Sequence[PartLine]) -> Iterator[tuple[PartLine, PartLine]]:
    """Yield each calibration with every simpler one of the same allocation.

    Simpler are those that try no candidate ranges, and the simplest those without user data.
    """
    groups: dict[tuple[str, ...], list[PartLine]] = {}
    for line in lines:
        if not line.is_full_precision and not _is_control(line):
            plan, runtime, _, *rest = _way(line)
            groups.setdefault((plan, runtime, *rest), []).append(line)
    simple = [name for name in CALIBRATORS if not CALIBRATORS[name].rows]
    simple.sort(key=lambda name: CALIBRATORS[name].user_data)
    for group in groups.values():
        line_of = {line.calibration: line for line in group}
        bases = [line_of[name] for name in simple if name in line_of]
        for place, base in enumerate(bases):
            yield from ((line, base) for line in group if line not in bases[: place + 1])


def _runtimes(lines: Sequence[PartLine]) -> Iterator[tuple[PartLine, PartLine]]:
    """Yield each line of an exported file with the emulations of the same plan and weights."""
    for line in lines:
        plan, runtime, _, *weights = _way(line)
        if runtime != EMULATED:
            for base in lines:
                base_plan, base_runtime, _, *base_weights = _way(base)
                if (base_plan, base_runtime, base_weights) == (plan, EMULATED, weights):
                    yield line, base


def _role(line: PartLine) -> str:
    return "baseline" if line.is_full_precision else ALLOCATORS[line.allocation].role


def _is_control(line: PartLine) -> bool:
    name = line.method.split("/")[0]
    return _role(line) == "control" or name.startswith(f"{line.allocation}-asc")


def _pair(question: Question, settings: str, first: PartLine, second: PartLine) -> Pair:
    """Return a pair of methods; their names leave out own clips if both are tuned on them."""
    same = first.method == second.method
    names = [x.method if x.source is Source.OWN else x.name for x in (first, second)]
    spoken = [x.phrase if same or x.source is not Source.OWN else x.method for x in (first, second)]
    return Pair(question, settings, first, second, (names[0], names[1]), (spoken[0], spoken[1]))


def _between(parts: Sequence[Part]) -> Iterator[Pair]:
    """Yield each value of a setting with its first value, for models tuned on own clips.

    Only settings whose values are tested on the same clips are compared.
    """
    for key in dict.fromkeys(key for part in parts for key in part.settings):
        if not (key == TUNING_CLIPS or key.startswith("quantization.")):
            continue
        groups: dict[str, list[Part]] = {}
        for part in parts:
            rest = {k: v for k, v in part.settings.items() if k not in (key, RUN)}
            groups.setdefault(settings_label(rest), []).append(part)
        for rest_label, group in groups.items():
            yield from _with_first(key, rest_label, group)


def _with_first(key: str, settings: str, group: Sequence[Part]) -> Iterator[Pair]:
    first = _value(key, group[0])
    line_of = {line.method: line for line in lines_of(group[0]) if line.source is Source.OWN}
    question = Question(
        f"What does the setting “{heading(key)}” change?", "another value", f"“{first}”"
    )
    for part in group[1:]:
        value = _value(key, part)
        own = [x for x in lines_of(part) if x.source is Source.OWN and not _is_control(x)]
        for line in [x for x in own if x.allocation == PAPER] or own:
            if line.method in line_of and value != first:
                names = f"{line.method}, {value}", f"{line.method}, {first}"
                spoken = f"{line.method} with {value}", f"{line.method} with {first}"
                yield Pair(question, settings, line, line_of[line.method], names, spoken)


def _value(key: str, part: Part) -> str:
    return settings_label({key: part.settings[key]})
