"""`fedsim list`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

_CHOICES = (
    ("corpus.kind", "fedsim.speech.corpus", "CORPORA"),
    ("quantization.sensitivity", "fedsim.quant.measures", "MEASURES"),
    ("methods.allocation", "fedsim.quant.allocation", "ALLOCATORS"),
    ("methods.calibration", "fedsim.quant.calibration", "CALIBRATORS"),
    ("privacy.release", "fedsim.privacy.releases", "RELEASES"),
    ("privacy.mechanism", "fedsim.privacy.noise", "MECHANISMS"),
    ("privacy.noise", "fedsim.privacy.noise", "NOISE"),
    ("engine.kind", "fedsim.engine", "ENGINES"),
)


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the command."""
    listing = verbs.add_parser(
        "list",
        help="list scenarios, and the names that one may use",
        description="List the known scenarios, and each name that a scenario may use for a choice.",
        allow_abbrev=False,
    )
    listing.set_defaults(verb=_list)


def _list(_: argparse.Namespace) -> int:
    from importlib import import_module

    from fedsim.scenario import list_scenarios

    print("scenarios (fedsim run NAME)")
    _print_names(dict(list_scenarios()) or {"none": "in ./scenarios or among fedsim's own"})
    for key, module, name in _CHOICES:
        names = getattr(import_module(module), name).describe()
        if key == "methods.allocation":
            names = {"fp32": "The full-precision model, for comparison.", **names}
        if key == "privacy.release":
            names["cohort"] = "The mean of a group, by secure aggregation: no member's own values."
        print(f"\n{key}")
        _print_names(names)
    for key, names in _fleet():
        print(f"\n{key}")
        _print_names(names)
    return 0


def _fleet() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield what a scenario may name of a fleet: device classes, faults, policies."""
    from fedsim.fleet.devices import BUILT_IN, load_catalogue
    from fedsim.fleet.faults import FAULTS
    from fedsim.fleet.work import POLICIES

    profiles = {name: device.profile for name, device in load_catalogue().items()}
    yield (
        f"fleet.devices (each number and its source: {BUILT_IN})",
        {
            name: f"{p.budget_mb:g} MB for a model of {', '.join(map(str, p.bit_depths))} bits, "
            f"{p.memory_mb:g} MB of memory, {p.down_mbit:g} Mbit/s down."
            for name, p in profiles.items()
        },
    )
    yield "faults.kind", {name: kind.summary for name, kind in FAULTS.items()}
    yield "clock.policy", {name: policy.summary for name, policy in POLICIES.items()}


def _print_names(names: dict[str, str]) -> None:
    width = max(map(len, names))
    for name, line in names.items():
        print(f"  {name:{width}}  {line}".rstrip())
