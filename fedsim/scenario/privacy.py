"""What a scenario says of privacy: what of a client's sensitivities leaves its device, and how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fedsim.errors import FedsimError
from fedsim.scenario.settings import Settings, Text, as_tuple, problem, refuse_repeats

if TYPE_CHECKING:
    from fedsim.scenario.schema import MethodSettings, Scenario

COHORT = "cohort"
"""The release that several devices make together; the others are in `fedsim.privacy.releases`."""
_PUBLIC = ("public_voices", "bounds")
_READS: dict[str, tuple[str, ...]] = {
    "values": (),
    "ranks": (),
    "plan": (),
    "quantized": ("bits", *_PUBLIC),
    "noisy": (
        *("mechanism", "epsilon", "delta", "noise", "layers", "rounds", "budget"),
        *_PUBLIC,
    ),
    COHORT: ("cohort", *_PUBLIC),
    "none": _PUBLIC,
}
"""Release -> the settings that it reads; one that is not here may read them all."""
_BLIND = ("fp32", "uniform", "shuffled")  # allocations that look at no sensitivity
_ORDER_ONLY = ("myqasr", "reversed")  # allocations that look at the order of layers alone


class PrivacyBudget(Settings):
    """What all releases of a device together may cost; one that has spent it declines."""

    epsilon: float = Field(gt=0, lt=1e9, description="sum over a device's releases")
    delta: float = Field(default=1e-5, ge=0, lt=1, description="sum over a device's releases")


class CohortSettings(Settings):
    """Groups whose mean alone the server learns."""

    size: int = Field(default=8, ge=3, le=2048, description="devices in a group, at least")
    threshold: int | None = Field(
        default=None,
        ge=3,
        description="devices that must stay to the end; null is the least allowed, more than half",
    )

    @property
    def least(self) -> int:
        """Devices that are in a sum, at least."""
        return self.threshold or max(self.size // 2 + 1, 3)


class PrivacySettings(Settings):
    """What of a client's sensitivities leaves its device; each release reads what it needs."""

    release: Text = Field(
        default="values", description="what leaves a device of its sensitivities; see fedsim list"
    )
    bits: int = Field(default=4, ge=1, le=32, description="quantized: bits a layer")
    mechanism: Text = Field(default="gaussian", description="noisy: distribution of the noise")
    epsilon: float = Field(
        default=1.0, gt=0, lt=1e9, description="noisy: what one release of a device costs"
    )
    delta: float = Field(
        default=1e-6, ge=0, lt=1, description="noisy: chance of more; below 1 / clients"
    )
    noise: Text = Field(
        default="seeded",
        description="noisy: seeded can be repeated and protects nobody, secure the other way round",
    )
    layers: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] | None = Field(
        default=None,
        min_length=1,
        description="noisy: layers that are released, from 0; null is all of them",
    )
    rounds: int = Field(
        default=1, ge=1, le=1000, description="noisy: releases of a device; the server averages"
    )
    budget: PrivacyBudget | None = Field(
        default=None, description="noisy: what all releases of a device may cost; null is no limit"
    )
    cohort: CohortSettings = CohortSettings()
    public_voices: int = Field(
        default=32, ge=2, le=10_000, description="synthetic speakers that public bounds come from"
    )
    bounds: Annotated[tuple[float, float], BeforeValidator(as_tuple)] = Field(
        default=(0.05, 0.95),
        description="quantiles of the public speakers between which each layer's bounds begin",
    )

    @property
    def needs_bounds(self) -> bool:
        """Whether the release reads public bounds of each layer."""
        return "bounds" in self._reads

    @property
    def _needs_delta(self) -> bool:
        """Whether a release costs delta; a mechanism that there is not is refused by its name."""
        from fedsim.privacy.noise import MECHANISMS

        return self.mechanism in MECHANISMS and MECHANISMS[self.mechanism]().needs_delta

    def relevant(self) -> dict[str, Any]:
        """Return the settings that results depend on: the release, and what it reads."""
        said = self.model_dump(mode="json")
        return {key: said[key] for key in ("release", *self._reads)}

    @property
    def _reads(self) -> tuple[str, ...]:
        every = (name for name in type(self).model_fields if name != "release")
        return _READS[self.release] if self.release in _READS else tuple(every)

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is None:
            return None
        if min(layers) < 0:
            raise problem(f"there is no layer {min(layers)}: layers count from 0")
        return refuse_repeats(layers)

    @model_validator(mode="after")
    def _check(self) -> PrivacySettings:
        low, high = self.bounds
        if not 0 <= low < high <= 1:
            text = f"{low:g} to {high:g} is no range of quantiles: such as [0.05, 0.95]"
            raise problem(text, "bounds")
        if self.release == "noisy" and self._needs_delta and self.delta == 0:
            text = f"{self.mechanism} noise needs a delta above 0; laplace takes 0"
            raise problem(text, "delta")
        if self.release == "noisy" and self.budget is not None:
            costs = {"epsilon": self.epsilon, "delta": self.delta if self._needs_delta else 0.0}
            for name, cost in costs.items():
                most = getattr(self.budget, name)
                if cost > most:
                    text = f"{most:g} is less than one release costs, {cost:g}: raise it"
                    raise problem(text, "budget", name)
        members, least = self.cohort.size, max(self.cohort.size // 2 + 1, 3)
        threshold = self.cohort.threshold
        if threshold is not None and not least <= threshold <= members:
            text = f"{threshold} of {members} members: it must be {least} to {members}"
            raise problem(text, "cohort", "threshold")
        return self


def unfit_methods(
    privacy: PrivacySettings, methods: Sequence[MethodSettings]
) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Yield a sentence and its place for each method that the release gives too little for."""
    release = privacy.release
    if release == "values":
        return
    planned: tuple[str, str] | None = None
    for i, method in enumerate(methods):
        for j, source in enumerate(method.tuned_on):
            if source != "own":
                yield (
                    f"{source!r} makes activation ranges travel, which release {release!r} does"
                    f" not cover: use own, or privacy.release: values",
                    ("methods", i, "tuned_on", j),
                )
        if method.allocation in _BLIND:
            continue
        if release == "ranks" and method.allocation not in _ORDER_ONLY:
            yield (
                f"{method.allocation} needs values, and release 'ranks' gives their order alone:"
                f" use {' or '.join(_ORDER_ONLY)}, or another privacy.release",
                ("methods", i),
            )
        way = method.allocation, method.order
        if release == "plan" and planned not in (None, way):
            yield (
                f"release 'plan' gives one plan, and {method.allocation} wants another than"
                f" {planned[0] if planned else ''}: run them apart, or use another privacy.release",
                ("methods", i),
            )
        planned = planned or way


def check_privacy(scenario: Scenario, clients: Sequence[str]) -> None:
    """Check the privacy section against the clients that were found and what is installed.

    Raises:
        FedsimError: for a delta of 1 / clients or more, a cohort of more devices than there are,
            secure noise without OpenDP, and public voices that are not to be had or take part.
    """
    privacy, n = scenario.privacy, len(clients)
    if privacy.release == "noisy":
        if privacy.delta * n >= 1:
            raise FedsimError(
                f"privacy.delta is {privacy.delta:g} and there are {n:,} clients: make it less than"
                f" 1 / clients = {1 / n:.3g}, or one of them may go unprotected"
            )
        if privacy.noise == "secure" and find_spec("opendp") is None:
            raise FedsimError(
                "privacy.noise: secure draws from OpenDP, which is not installed: install"
                " fedsim-speech[privacy], or use seeded for a study"
            )
    if privacy.release == COHORT and n < privacy.cohort.size:
        raise FedsimError(
            f"privacy.cohort.size is {privacy.cohort.size} and there are {n:,} clients: make the"
            f" groups smaller or take more clients"
        )
    if privacy.needs_bounds:
        from fedsim.speech.voices.speaker import FIRST_PUBLIC_SPEAKER
        from fedsim.speech.voices.synthesizer import require_synthesizer

        require_synthesizer()
        people = scenario.corpus.population
        if people is not None and people.first + 2 * people.speakers > FIRST_PUBLIC_SPEAKER:
            raise FedsimError(
                f"corpus.population reaches speaker {FIRST_PUBLIC_SPEAKER:,}, and from there on"
                f" speakers are the public ones that bounds come from: lower first or speakers"
            )


def released_allocation(scenario: Scenario) -> tuple[str, str]:
    """Return allocation and order of the plan that a device makes itself (release `plan`)."""
    return next(
        ((m.allocation, m.order) for m in scenario.methods if m.allocation not in _BLIND),
        ("myqasr", "descending"),
    )
