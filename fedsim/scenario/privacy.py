"""The section `privacy` of a scenario: what of a client's layer profile leaves its device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fedsim.privacy.noise import MECHANISMS, NOISE
from fedsim.privacy.releases import RELEASES, Release
from fedsim.quant.allocation import ALLOCATORS
from fedsim.scenario.methods import OWN, MethodSettings
from fedsim.scenario.settings import OneOf, Settings, Text, as_tuple, problem, refuse_repeats

_Layer = Annotated[int, Field(le=1_000_000)]


class PrivacyBudget(Settings):
    """What all releases of a device may cost together; a device that has spent it declines."""

    epsilon: float = Field(gt=0, lt=1e9, description="sum over a device's releases")
    delta: float = Field(default=1e-5, ge=0, lt=1, description="sum over a device's releases")


class CohortSettings(Settings):
    """Groups of devices; the server learns only the mean of each group."""

    size: int = Field(default=8, ge=3, le=2048, description="minimum number of devices in a group")
    threshold: int | None = Field(
        default=None,
        ge=3,
        le=2048,
        description="devices that must stay to the end; null is the minimum, more than half",
    )

    @property
    def min_members(self) -> int:
        """Minimum number of devices in a sum."""
        return self.threshold or max(self.size // 2 + 1, 3)


class PrivacySettings(Settings):
    """What of a client's layer profile leaves its device; a release reads only some settings."""

    release: Annotated[Text, OneOf(RELEASES)] = Field(
        default="values", description="what leaves a device of its layer profile; see fedsim list"
    )
    bits: int = Field(default=4, ge=1, le=32, description="quantized: bits per layer")
    mechanism: Annotated[Text, OneOf(MECHANISMS)] = Field(
        default="gaussian", description="noisy: distribution of the noise"
    )
    epsilon: float = Field(
        default=1.0, gt=0, lt=1e9, description="noisy: privacy loss of one release of a device"
    )
    delta: float = Field(
        default=1e-6,
        ge=0,
        lt=1,
        description="noisy: probability of a larger loss; below 1 / clients",
    )
    noise: Annotated[Text, OneOf(NOISE)] = Field(
        default="seeded",
        description="noisy: seeded is repeatable and protects nobody; secure protects and is not",
    )
    layers: Annotated[tuple[_Layer, ...], BeforeValidator(as_tuple)] | None = Field(
        default=None,
        min_length=1,
        max_length=100_000,
        description="noisy: layers that are released, counted from 0; null is all of them",
    )
    rounds: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="noisy: releases of a device, which the server averages",
    )
    budget: PrivacyBudget | None = Field(
        default=None,
        description="noisy: maximum cost of all releases of a device; null is no limit",
    )
    cohort: CohortSettings = Field(
        default=CohortSettings(), description="cohort: the groups whose mean the server learns"
    )
    public_voices: int = Field(
        default=32,
        ge=2,
        le=10_000,
        description="number of synthetic speakers from whom public bounds come",
    )
    bounds: Annotated[tuple[float, float], BeforeValidator(as_tuple)] = Field(
        default=(0.05, 0.95),
        description="quantiles over the public speakers, from which each layer's bounds start",
    )

    @property
    def chosen(self) -> Release:
        """The registry entry of the release."""
        return RELEASES[self.release]

    @property
    def needs_bounds(self) -> bool:
        """Whether the release reads public bounds of each layer."""
        return self.chosen.needs_bounds

    @property
    def spends_delta(self) -> bool:
        """Whether a release costs delta."""
        return MECHANISMS[self.mechanism].needs_delta

    @property
    def rounds_of_device(self) -> int:
        """Releases of one device: several only where they differ by their noise."""
        return self.rounds if self.chosen.adds_noise else 1

    def relevant(self) -> dict[str, Any]:
        """Return the settings that results depend on: the release, and what it reads."""
        every = self.model_dump(mode="json")
        reads = self.chosen.settings
        keys = ("release", *reads) if reads is not None else tuple(every)
        return {key: every[key] for key in keys}

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is None:
            return None
        if min(layers) < 0:
            raise problem(f"there is no layer {min(layers)}: count layers from 0")
        return refuse_repeats(layers)

    @model_validator(mode="after")
    def _check(self) -> PrivacySettings:
        low, high = self.bounds
        if not 0 <= low < high <= 1:
            text = f"{low:g} to {high:g} is not a range of quantiles: use one such as [0.05, 0.95]"
            raise problem(text, "bounds")
        if self.chosen.adds_noise:
            self._check_costs()
        size, smallest = self.cohort.size, max(self.cohort.size // 2 + 1, 3)
        threshold = self.cohort.threshold
        if threshold is not None and not smallest <= threshold <= size:
            text = f"{threshold} of {size} members is out of range: use {smallest} to {size}"
            raise problem(text, "cohort", "threshold")
        return self

    def _check_costs(self) -> None:
        if self.spends_delta and self.delta == 0:
            text = f"{self.mechanism} noise needs a delta above 0: raise it, or use laplace"
            raise problem(text, "delta")
        if self.budget is None:
            return
        costs = {"epsilon": self.epsilon, "delta": self.delta if self.spends_delta else 0.0}
        for name, cost in costs.items():
            limit = getattr(self.budget, name)
            if cost > limit:
                text = (
                    f"the budget of {limit:g} is below the {cost:g} that one release costs: raise"
                    f" the budget, or lower privacy.{name}"
                )
                raise problem(text, "budget", name)


def unfit_methods(
    privacy: PrivacySettings, methods: Sequence[MethodSettings]
) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Yield (message, location) for each method that needs more than the release gives."""
    release = privacy.chosen
    if release.plain:
        return
    planned: tuple[str, str] | None = None
    for i, method in enumerate(methods):
        for j, source in enumerate(method.tuned_on):
            if source != OWN:
                yield (
                    f"{source!r} sends activation ranges to other clients, which release"
                    f" {privacy.release!r} does not cover: use own, or privacy.release: values",
                    ("methods", i, "tuned_on", j),
                )
        if not method.reads_profile:
            continue
        if method.reads_table and release.needs_bounds:
            yield (
                f"release {privacy.release!r} reads public bounds, and a table of losses has none:"
                f" use losses: public, or privacy.release: values or plan",
                ("methods", i, "losses"),
            )
        if release.gives == "order" and method.reads != "order":
            known = [name for name in ALLOCATORS if ALLOCATORS[name].reads == "order"]
            yield (
                f"{method.allocation} reads values, and release {privacy.release!r} gives only"
                f" their order: use {' or '.join(known)}, or another privacy.release",
                ("methods", i),
            )
        way = method.allocation, method.order
        if release.gives == "plan" and planned not in (None, way):
            yield (
                f"release {privacy.release!r} gives one plan, and {method.allocation} needs another"
                f" than {planned[0] if planned else ''}: run them separately, or use another"
                f" privacy.release",
                ("methods", i),
            )
        planned = planned or way


def released_allocation(methods: Sequence[MethodSettings]) -> tuple[str, str]:
    """Return allocation and order of the plan that a device makes itself (release `plan`)."""
    return next(
        ((method.allocation, method.order) for method in methods if method.reads_profile),
        ("myqasr", "descending"),
    )
