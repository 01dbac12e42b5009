"""What a model costs and loses at each budget, for each set of bit depths that a runtime may have.

A sizing is a study: a matrix of budgets and sets of bit depths, whose plans and rounding read
public clips alone, so that the answer holds for a user of whom nothing is known yet.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.fleet.devices import DeviceClass, load_catalogue
from fedsim.quant.memory import loaded_bytes
from fedsim.results.rates import Rate, lines_of
from fedsim.results.runs import Part
from fedsim.runner.starter import starter
from fedsim.scenario.load import load_scenario
from fedsim.scenario.schema import Scenario
from fedsim.speech.macs import count_macs
from fedsim.study.model import StudyModel, load_study_model

TOKENS_PER_SECOND = 4.0
"""Tokens of a decoder for a second of speech: 150 words a minute of 1.6 tokens each."""
_METHODS = "[fp32, {allocation: knapsack, rounding: compensated, moments: public}]"
_BUNDLED = """\
name: size
model: {id: bundled:ctc}
corpus:
  {kind: voices, group_by: speaker, population: {speakers: 12}, tuning_clips: 1, test_clips: 8}
clients: {budget_mb: 1.0}
methods: [fp32]
"""


@dataclass(frozen=True)
class Option:
    """One budget and one set of bit depths."""

    budget_mb: float
    depths: tuple[int, ...]
    why_not: str
    """Why no model fits; empty if one does. The other fields are empty then."""
    file_bytes: int = 0
    """The largest of the clients' files, which differ by their names of a language at most."""
    mean_bits: float = 0.0
    plan: Mapping[int, int] | None = None
    """Bit depth -> how many layers have it."""
    rate: Rate | None = None
    loaded_bytes: int = 0
    """Weights in memory: packed, and one layer at a time in float32."""
    seconds: Mapping[str, float | None] | None = None
    """Device class -> seconds for `clip_s` seconds of audio; None if its runtime lacks a depth."""


@dataclass(frozen=True)
class Sizing:
    """All options for one model, and the model itself."""

    model: str
    weights: int
    full_bytes: int
    full: Rate | None
    """The rate of the model in full precision."""
    clip_s: float
    macs: float
    """Multiply-accumulates for a clip of that length."""
    has_tokens: bool
    """Whether a part of them is a decoder's, see `TOKENS_PER_SECOND`."""
    options: tuple[Option, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of devices for which there are times."""
        return next((tuple(option.seconds) for option in self.options if option.seconds), ())

    def smallest(self, max_percent: float) -> tuple[Option | None, Option | None]:
        """Return the options of fewest bytes whose error is at most `max_percent`: as measured,
        and by the upper end of its 95 % interval. Of an accuracy it is what is missing to 100."""

        def best(ends: int) -> Option | None:
            fit = [x for x in self.options if x.rate and _error(x.rate, ends) <= max_percent]
            return min(fit, key=lambda option: option.file_bytes, default=None)

        return best(0), best(1)


def sizing_study(
    model: str,
    budgets: Sequence[float],
    depth_sets: Sequence[Sequence[int]],
    clips: Path | None = None,
    overrides: Sequence[str] = (),
) -> Scenario:
    """Return the study that sizes a model.

    Args:
        model: a hub id, `bundled:NAME`, `cache:NAME` or a folder.
        budgets: in MB.
        depth_sets: sets of bit depths, each in 2..16.
        clips: recordings with texts, in any layout; None for synthetic English voices.
        overrides: further `key=value` of the study, as `--set` takes them.

    Raises:
        FedsimError: as `starter` and `load_scenario`.
    """
    matrix = {
        "clients.budget_mb": list(budgets),
        "clients.bit_depths": [list(depths) for depths in depth_sets],
    }
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "size.yaml"
        text = _BUNDLED if clips is None else starter(clips, model, file)
        file.write_text(text, encoding="utf-8")
        return load_scenario(
            file,
            [
                "name=size",
                "description=Bytes, error and time at each budget.",
                f"model.id={json.dumps(model)}",
                f"methods={_METHODS}",
                "study=true",
                f"clients.budget_mb={budgets[0]}",
                f"matrix={json.dumps(matrix)}",
                *overrides,
            ],
        )


def sizing(scenario: Scenario, parts: Sequence[Part], clip_s: float = 10.0) -> Sizing:
    """Return what a finished sizing study found, with the cost of its model on known devices.

    Args:
        scenario: from `sizing_study`.
        parts: the combinations of its run.
        clip_s: seconds of audio for which MACs and time are given.
    """
    every = sorted({bits for part in parts for bits in part.scenario.clients.bit_depths})
    clients = scenario.clients.model_copy(update={"bit_depths": tuple(every)})
    study = load_study_model(scenario.model_copy(update={"clients": clients}))
    macs, catalogue = count_macs(study.model), load_catalogue()
    tokens = TOKENS_PER_SECOND * clip_s if study.model.needs_tokens else 0.0
    lines = [line for part in parts for line in lines_of(part)]
    full = [line.rate for line in lines if line.is_full_precision]
    return Sizing(
        model=scenario.model.id,
        weights=sum(layer.n_weights for layer in study.layers),
        full_bytes=study.switch.full_bytes(),
        full=full[0] if full else None,
        clip_s=clip_s,
        macs=float(macs.of(1, clip_s, tokens).sum()),
        has_tokens=tokens > 0,
        options=tuple(
            _option(part, study, macs.of(1, clip_s, tokens).tolist(), catalogue) for part in parts
        ),
    )


def _option(
    part: Part, study: StudyModel, macs: Sequence[float], catalogue: Mapping[str, DeviceClass]
) -> Option:
    settings = part.scenario.clients
    assert isinstance(settings.budget_mb, float)
    line = next((line for line in lines_of(part) if not line.is_full_precision), None)
    if line is None:
        failure = part.failures[0] if part.failures else None
        reason = failure.reason if failure else "the run did not end: run it again"
        who = f"client {failure.client!r}: " if failure else ""
        return Option(settings.budget_mb, settings.bit_depths, reason.removeprefix(who))
    row = max(line.rows, key=lambda row: row.file_bytes)
    bits = part.plan_of[row.client, row.method, row.tuned_on].bits
    packed = study.sizes.total(bits) - study.sizes.fixed_bytes
    return Option(
        settings.budget_mb,
        settings.bit_depths,
        why_not="",
        file_bytes=row.file_bytes,
        mean_bits=row.mean_bits,
        plan=dict(sorted(Counter(bits).items())),
        rate=line.rate,
        loaded_bytes=loaded_bytes(study.layers, study.leftovers, packed),
        seconds={
            name: _seconds(device.profile.macs_per_s, device.profile.bit_depths, bits, macs)
            for name, device in catalogue.items()
        },
    )


def _seconds(
    speeds: Mapping[int, float], legal: Sequence[int], bits: Sequence[int], macs: Sequence[float]
) -> float | None:
    if not set(bits) <= set(legal):
        return None
    return sum(n / speeds[depth] for depth, n in zip(bits, macs, strict=True))


def _error(rate: Rate, end: int) -> float:
    """Return an error rate in percent, or with `end` the upper end of its interval."""
    flipped = rate.kind == "accuracy"
    value = rate.value if not end else (rate.low if flipped else rate.high)
    if value is None:
        return float("inf")
    return 100 - value if flipped else value
