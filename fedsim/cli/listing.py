"""`fedsim list`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the command."""
    listing = verbs.add_parser(
        "list",
        help="list scenarios, and the names that a scenario may use",
        description="List the known scenarios, and for each setting that takes a name the names"
        " that it takes, those of installed plug-ins included.",
        allow_abbrev=False,
    )
    listing.set_defaults(verb=_list)


def _list(_: argparse.Namespace) -> int:
    from fedsim.scenario import list_scenarios

    scenarios = dict(list_scenarios()) or {"none": "in ./scenarios or among fedsim's own"}
    _print_names("scenarios (fedsim run NAME)", scenarios)
    for key, names in (_families(), *_choices(), *_fleet_choices()):
        print()
        _print_names(key, names)
    return 0


def _families() -> tuple[str, dict[str, str]]:
    """Return a title, and name -> summary for the families of speech models."""
    from fedsim.speech.families import FAMILIES

    return "model.id (a model of one of these families)", FAMILIES.describe()


def _choices() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (dotted key, name -> summary) for every setting that names a registry entry."""
    from fedsim.scenario.schema import Scenario
    from fedsim.scenario.settings import named_choices

    titles: dict[int, list[str]] = {}
    names = {}
    for key, choices in named_choices(Scenario):  # several settings may name the same entries
        titles.setdefault(id(choices), []).append(key)
        names[id(choices)] = choices.describe()
    for choices_id, keys in titles.items():
        yield ", ".join(keys), names[choices_id]


def _fleet_choices() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the same for a fleet: device classes, faults, policies."""
    from fedsim.fleet.devices import BUILT_IN, load_catalogue
    from fedsim.fleet.faults import FAULTS
    from fedsim.fleet.work import POLICIES

    profiles = {name: device.profile for name, device in load_catalogue().items()}
    yield (
        f"fleet.devices (each number and its source: {BUILT_IN})",
        {
            name: f"{profile.budget_mb:g} MB for a model of"
            f" {', '.join(map(str, profile.bit_depths))} bits, {profile.memory_mb:g} MB of memory,"
            f" {profile.down_mbit:g} Mbit/s down."
            for name, profile in profiles.items()
        },
    )
    yield "faults.kind", {name: kind.summary for name, kind in FAULTS.items()}
    yield "clock.policy", {name: policy.summary for name, policy in POLICIES.items()}


def _print_names(title: str, names: Mapping[str, str]) -> None:
    print(title)
    width = max(map(len, names))
    for name, summary in names.items():
        print(f"  {name:{width}}  {summary}".rstrip())
