"""What a report asks: which pairs of models are worth comparing, and what each would answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedsim.quant.allocation import ALLOCATORS, PAPER
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.results.labels import RUN, TUNING_CLIPS, heading, settings_label
from fedsim.results.rates import PartLine, lines_of
from fedsim.results.runs import Part
from fedsim.scenario.methods import FULL_PRECISION, NOBODY, OTHER, OWN


@dataclass(frozen=True)
class Question:
    """A question, and what its two sides are called where answers are counted."""

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
WAY = Question("Is there a better way to give bits?", PAPER, "another way")
CALIBRATION = Question(
    "Does it matter how activation ranges are set?", "the more careful way", "the plainer one"
)
COST = Question("What does the small size cost?", "the compressed model", "full precision")


@dataclass(frozen=True)
class Pair:
    """Two lines to compare; of both sides, a short name for a table and one for a sentence."""

    question: Question
    settings: str
    first: PartLine
    second: PartLine
    names: tuple[str, str]
    spoken: tuple[str, str]


def pairs_of(parts: Sequence[Part]) -> list[Pair]:
    """Return the pairs of each part, question by question, then those of parts with each other."""
    within = [pair for part in parts for pair in _within(lines_of(part), part.label)]
    found = [*within, *_across(parts)]
    order = [OWN_CLIPS, LAYERS, ORDER, WAY, CALIBRATION, COST]
    order += [q for q in dict.fromkeys(pair.question for pair in found) if q not in order]
    return sorted(found, key=lambda pair: order.index(pair.question))


def _within(lines: Sequence[PartLine], settings: str) -> Iterator[Pair]:
    known = {(line.method, line.source): line for line in lines}
    own = [line for line in lines if line.source == OWN]
    planned = [x for x in own if _role(x) == "method" and not _is_control(x)]
    for line in own:
        if (line.method, OTHER) in known:
            yield _pair(OWN_CLIPS, settings, line, known[line.method, OTHER])
    for line in planned:
        for other in (x for x in own if x.calibration == line.calibration):
            if _role(other) == "baseline":
                yield _pair(LAYERS, settings, line, other)
            elif line.allocation == PAPER and _is_control(other):
                yield _pair(ORDER, settings, line, other)
            elif line.allocation == PAPER != other.allocation:
                yield _pair(WAY, settings, line, other)
    for line, base in _calibrations([x for x in lines if x.source in (OWN, NOBODY)]):
        yield _pair(CALIBRATION, settings, line, base)
    for line in planned:
        if (FULL_PRECISION, NOBODY) in known:
            yield _pair(COST, settings, line, known[FULL_PRECISION, NOBODY])


def _calibrations(lines: Sequence[PartLine]) -> Iterator[tuple[PartLine, PartLine]]:
    """Yield each calibration with those of the same allocation that are plainer.

    Plainer are calibrations that try no candidate ranges: those without user data first.
    """
    groups: dict[str, list[PartLine]] = {}
    for line in lines:
        if not line.is_full_precision and not _is_control(line):
            groups.setdefault(line.method.rsplit("/", 1)[0], []).append(line)
    plain = [name for name in CALIBRATORS if not CALIBRATORS[name].rows]
    plain.sort(key=lambda name: CALIBRATORS[name].user_data)
    for group in groups.values():
        found = {line.calibration: line for line in group}
        bases = [found[name] for name in plain if name in found]
        for place, base in enumerate(bases):
            yield from ((line, base) for line in group if line not in bases[: place + 1])


def _role(line: PartLine) -> str:
    return "baseline" if line.is_full_precision else ALLOCATORS[line.allocation].role


def _is_control(line: PartLine) -> bool:
    name = line.method.split("/")[0]
    return _role(line) == "control" or name.startswith(f"{line.allocation}-asc")


def _pair(question: Question, settings: str, first: PartLine, second: PartLine) -> Pair:
    """Return a pair of methods; own clips are not spoken of where both are tuned on them."""
    same = first.method == second.method
    names = [x.method if x.source == OWN else x.name for x in (first, second)]
    spoken = [x.phrase if same or x.source != OWN else x.method for x in (first, second)]
    return Pair(question, settings, first, second, (names[0], names[1]), (spoken[0], spoken[1]))


def _across(parts: Sequence[Part]) -> Iterator[Pair]:
    """Yield each value of a setting with the first one, for models tuned on own clips.

    Only of settings under which the same clips are tested.
    """
    for key in dict.fromkeys(key for part in parts for key in part.settings):
        if not (key == TUNING_CLIPS or key.startswith("quantization.")):
            continue
        groups: dict[str, list[Part]] = {}
        for part in parts:
            rest = {k: v for k, v in part.settings.items() if k not in (key, RUN)}
            groups.setdefault(settings_label(rest), []).append(part)
        for rest_label, group in groups.items():
            yield from _against_first(key, rest_label, group)


def _against_first(key: str, settings: str, group: Sequence[Part]) -> Iterator[Pair]:
    first = _value(key, group[0])
    known = {line.method: line for line in lines_of(group[0]) if line.source == OWN}
    question = Question(
        f"What does the setting “{heading(key)}” change?", "another value", f"“{first}”"
    )
    for part in group[1:]:
        value = _value(key, part)
        own = [x for x in lines_of(part) if x.source == OWN and not _is_control(x)]
        for line in [x for x in own if x.allocation == PAPER] or own:
            if line.method in known and value != first:
                names = f"{line.method}, {value}", f"{line.method}, {first}"
                spoken = f"{line.method} with {value}", f"{line.method} with {first}"
                yield Pair(question, settings, line, known[line.method], names, spoken)


def _value(key: str, part: Part) -> str:
    return settings_label({key: part.settings[key]})
