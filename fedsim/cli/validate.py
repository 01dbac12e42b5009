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
    from collections.abc import Iterator

    from fedsim.scenario import Scenario
    from fedsim.speech.clips import ClientData, Clients

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

    from fedsim.quant.formats import OWN
    from fedsim.scenario.cells import forward_passes
    from fedsim.scenario.matrix import expand
    from fedsim.speech.corpus import open_clients
    from fedsim.study.clients import keys_of_cells
    from fedsim.study.devices import Devices

    clients = open_clients(
        scenario.corpus, scenario.clients, scenario.seed, scenario.text_normalizer
    )
    cells = [cell.scenario for cell in expand(scenario)]
    keys = keys_of_cells(cells)  # raises what a run would raise
    passes = sum(forward_passes(cell, len(found)) for cell, found in zip(cells, keys, strict=True))
    runs = f"{count_words(len(cells), 'combination')}, " if scenario.matrix else ""
    print(f"{count_words(len(clients), 'client')}; {runs}{passes:,.0f} forward passes of one clip")
    devices = Devices(scenario, list(clients))
    width = max(map(len, ["client", *list(clients)[:_MAX_SHOWN]]))
    chosen = scenario.clients.format
    head = "budget MB" if chosen == OWN else f"budget MB, {chosen}"
    print(f"{'client':{width}}  tuning clips  test clips  {head}", end="")
    print("  device" if scenario.fleet else "")
    for key in list(clients)[:_MAX_SHOWN]:
        tuning, test = clients.clips or _clips(clients[key])
        budget, profile = devices[key].budget_bytes / MB, devices.profile(key)
        print(f"{key:{width}}  {tuning:12,}  {test:10,}  {budget:{len(head)},.1f}", end="")
        print(f"  {profile.device}" if profile else "")
    if len(clients) > _MAX_SHOWN:
        print(f"... and {count_words(len(clients) - _MAX_SHOWN, 'client')} more")
    if clients.found is not None:
        from fedsim.speech.summary import corpus_lines

        for line in corpus_lines(scenario.corpus, clients.found, deep=options.deep):
            print(line)
    for line in _doubts(scenario, clients):
        print(line)
    if options.deep:
        from fedsim.runner.preflight import preflight

        for line in preflight(scenario, clients):
            print(line, flush=True)
    counts = (
        f"{count_words(len(clients), 'client')}, {count_words(len(scenario.methods), 'method')}"
    )
    print(f"ok: {scenario.name}: {counts}")
    return 0


def _clips(client: ClientData) -> tuple[int, int]:
    return len(client.tuning), len(client.test)


def _doubts(scenario: Scenario, clients: Clients) -> Iterator[str]:
    """Yield a line for each client that will fail, as far as metadata shows; of the clients that
    are listed, the content of their clips is compared too.

    The last line counts references without a word.
    """
    from fedsim.speech.eligible import check_metadata, require_clips
    from fedsim.speech.wordless import wordless_line

    if clients.clips is not None:
        require_clips(next(iter(clients.values())), scenario.corpus)
        return
    failing = 0
    for number, client in enumerate(clients.values()):
        try:
            check = require_clips if number < _MAX_SHOWN else check_metadata
            check(client, scenario.corpus)
        except FedsimError as error:
            failing += 1
            if failing <= _MAX_SHOWN:
                yield f"this client will fail: {error}"
    if failing > _MAX_SHOWN:
        yield f"... and {count_words(failing - _MAX_SHOWN, 'client')} more will fail"
    line = wordless_line(clients)
    if line:
        yield line


def _check_places(scenario: Scenario) -> None:
    places = (("model.id", scenario.model.id), ("corpus.path", scenario.corpus.path))
    for key, place in places:
        if place is not None and os.path.isabs(place) and not os.path.exists(place):
            raise FedsimError(
                f"{key}: there is no {place}: check the path, or create it"
                " (python -m benchmarks.real_speech fills the cache)"
            )
