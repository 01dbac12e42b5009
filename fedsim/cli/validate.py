"""`fedsim validate`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from fedsim.base.units import MB, count_words
from fedsim.cli.options import add_scenario, chosen_scenario
from fedsim.errors import FedsimError

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

_DESCRIPTION = """\
Check a scenario without running it: every key and value; then open its corpus and list the clients
with the number of their clips and their budgets. With --deep also load the model and the clips of
one client, and check that budgets, audio, texts or classes, and languages fit the model; nothing is
quantized. The last line begins with "ok" if all is well."""
_MAX_SHOWN = 40
"""Clients that are listed."""


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the command."""
    validate = verbs.add_parser(
        "validate",
        help="check a scenario and list its clients",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_scenario(validate, nargs="?")
    validate.add_argument(
        "--deep", action="store_true", help="also load the model and one client's clips"
    )
    validate.add_argument(
        "--schema", action="store_true", help="print the JSON Schema of scenario files, for editors"
    )
    validate.set_defaults(verb=_validate)


def _validate(options: argparse.Namespace) -> int:
    if options.schema:
        import json

        from fedsim.scenario import json_schema

        print(json.dumps(json_schema(), indent=2))
        return 0
    if options.scenario is None:
        print("error: no scenario is named: give a SCENARIO, or --schema", file=sys.stderr)
        return 2
    scenario = chosen_scenario(options)
    _check_places(scenario)

    from fedsim.scenario.matrix import expand
    from fedsim.speech.clips import require_clips
    from fedsim.speech.corpus import open_clients
    from fedsim.study.clients import client_keys
    from fedsim.study.devices import Devices

    clients = open_clients(scenario.corpus, scenario.clients, scenario.seed)
    for cell in expand(scenario):
        client_keys(cell.scenario)  # raises what a run would raise
    devices = Devices(scenario, list(clients))
    width = max(map(len, ["client", *clients]))
    print(f"{'client':{width}}  tuning clips  test clips  budget MB", end="")
    print("  device" if scenario.fleet else "")
    for key in list(clients)[:_MAX_SHOWN]:
        tuning, test = len(clients[key].tuning), len(clients[key].test)
        budget, profile = devices[key].budget_bytes / MB, devices.profile(key)
        print(f"{key:{width}}  {tuning:12,}  {test:10,}  {budget:9,.1f}", end="")
        print(f"  {profile.device}" if profile else "")
    if len(clients) > _MAX_SHOWN:
        print(f"... and {count_words(len(clients) - _MAX_SHOWN, 'client')} more")
    for client in clients.values():
        try:
            require_clips(client, scenario.corpus)
        except FedsimError as error:
            print(f"this client will fail: {error}")
    if options.deep:
        from fedsim.run.preflight import preflight

        for line in preflight(scenario, clients):
            print(line, flush=True)
    counts = (
        f"{count_words(len(clients), 'client')}, {count_words(len(scenario.methods), 'method')}"
    )
    print(f"ok: {scenario.name}: {counts}")
    return 0


def _check_places(scenario: Scenario) -> None:
    places = (("model.id", scenario.model.id), ("corpus.path", scenario.corpus.path))
    for key, place in places:
        if place is not None and os.path.isabs(place) and not os.path.exists(place):
            raise FedsimError(
                f"{key}: there is no {place}: check the path, or create it"
                " (python -m benchmarks.real_speech fills the cache)"
            )
