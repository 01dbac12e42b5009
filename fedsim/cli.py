"""The command line: `fedsim run`, `fedsim validate`, `fedsim list`.

Thin, and quick to start: a verb imports what it needs when it runs. Exit codes: 0 well, 1 an
error or no client finished, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fedsim
from fedsim.errors import FedsimError

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

_DESCRIPTION = """\
Simulate federated personalization of a speech model: every client gets a mixed-precision copy of
it that fits the client's own memory budget, made from a few of its unlabelled clips (myQASR)."""

_EPILOG = """\
examples:
  fedsim list                                  what there is to run and to choose from
  fedsim validate prompts_languages            check a scenario and see its clients
  fedsim run prompts_languages --workers 2     run it; the table comes at the end
  fedsim run my.yaml --set clients.budget_mb=40 methods.0.calibration=[minmax]

exit codes: 0 well; 1 an error, or no client finished; 2 wrong usage; 130 interrupted"""

_SET_HELP = """\
override keys of the scenario: dotted key, list items by index, value in YAML,
such as clients.budget_mb=40 or methods.0.calibration=[minmax,cosine]"""

_RUN_DESCRIPTION = """\
Run a scenario. On a terminal a line shows the stage, clients done, clients a second and the time
left. At the end comes a table: one line a method, with model size, mean bit depth and word error
rate (or accuracy), then one line a client, then the clients that failed and why.

The run folder holds scenario.yaml as resolved, versions.json, ledger.sqlite (each client as it
finished), results.parquet and, if the scenario says save_models, models/."""

_VALIDATE_DESCRIPTION = """\
Check a scenario without running it: every key and value, then open its corpus and list the clients
with the number of their clips and their budgets. The last line begins with "ok" if all is well."""

_CHOICES = (
    ("corpus.kind", "fedsim.speech.corpus", "CORPORA"),
    ("quantization.sensitivity", "fedsim.quant.sensitivity", "MEASURES"),
    ("methods.allocation", "fedsim.quant.allocation", "ALLOCATORS"),
    ("methods.calibration", "fedsim.quant.calibration", "CALIBRATORS"),
    ("engine.kind", "fedsim.engine", "ENGINES"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: the words after `fedsim`; None takes them from `sys.argv`.
    """
    parser = _make_parser()
    options = parser.parse_args(arguments)
    try:
        code = _print_help(parser) if options.verb is None else options.verb(options)
        sys.stdout.flush()  # here, where a reader that has gone away is still our business
        return int(code)
    except FedsimError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough; nothing is left to print at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _print_help(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return 0


def _run(options: argparse.Namespace) -> int:
    scenario = _with_engine(_load(options), options)  # first, so that mistakes are told at once

    from rich.console import Console

    from fedsim import progress
    from fedsim.results.folder import new_run_path
    from fedsim.results.table import print_table
    from fedsim.run import run_scenario

    out = options.out or new_run_path(scenario.name)
    try:
        with progress.show(Console(stderr=True)):
            result = run_scenario(scenario, out)
    except KeyboardInterrupt:
        ledger = out / "ledger.sqlite"
        kept = (
            f"the clients that finished are in {ledger}" if ledger.exists() else "nothing is kept"
        )
        print(f"interrupted: {kept}", file=sys.stderr)
        return 130
    finally:
        _remove_if_empty(out)
    # A file gets room for the wider tables; a terminal, or who sets COLUMNS, says what it has.
    fixed = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if fixed else 120)
    with console.capture() as captured:
        print_table(result.rows, result.failures, console)
    print(captured.get())
    print(f"run folder: {result.folder.path}")
    return 1 if result.failures and not result.rows else 0


def _validate(options: argparse.Namespace) -> int:
    if options.schema:
        import json

        from fedsim.scenario import json_schema

        print(json.dumps(json_schema(), indent=2))
        return 0
    if options.scenario is None:
        print("error: name a SCENARIO, or give --schema", file=sys.stderr)
        return 2
    scenario = _load(options)
    _check_places(scenario)

    from fedsim.scenario import check_sources, client_budgets
    from fedsim.speech.corpus import open_clients, require_clips

    clients = open_clients(scenario.corpus, scenario.clients, scenario.seed)
    check_sources(scenario, list(clients))
    budgets = client_budgets(scenario.clients, list(clients))
    width = max(map(len, ["client", *clients]))
    print(f"{'client':{width}}  tuning clips  test clips  budget MB")
    for key in sorted(clients):
        tuning, test = len(clients[key].tuning), len(clients[key].test)
        print(f"{key:{width}}  {tuning:12,}  {test:10,}  {budgets[key] / 2**20:9,.1f}")
    for key in sorted(clients):
        try:
            require_clips(clients[key], scenario.corpus)
        except FedsimError as error:
            print(f"this client will fail: {error}")
    counts = f"{_count(len(clients), 'client')}, {_count(len(scenario.methods), 'method')}"
    print(f"ok: {scenario.name}: {counts}")
    return 0


def _list(_: argparse.Namespace) -> int:
    from importlib import import_module

    from fedsim.scenario import list_scenarios

    print("scenarios (fedsim run NAME)")
    _print_names(dict(list_scenarios()) or {"none": "in ./scenarios or among fedsim's own"})
    for key, module, name in _CHOICES:
        names = getattr(import_module(module), name).describe()
        if key == "methods.allocation":
            names = {"fp32": "The full-precision model, for comparison.", **names}
        print(f"\n{key}")
        _print_names(names)
    return 0


def _print_names(names: dict[str, str]) -> None:
    width = max(map(len, names))
    for name, line in names.items():
        print(f"  {name:{width}}  {line}".rstrip())


def _load(options: argparse.Namespace) -> Scenario:
    from fedsim.scenario import find_scenario, load_scenario

    return load_scenario(find_scenario(options.scenario), options.set)


def _with_engine(scenario: Scenario, options: argparse.Namespace) -> Scenario:
    update: dict[str, Any] = {}
    if options.engine is not None:
        from fedsim.engine import ENGINES

        ENGINES[options.engine]  # raises for an unknown name
        update["kind"] = options.engine
    if options.workers is not None:
        update["workers"] = options.workers
    if options.threads is not None:
        update["threads"] = options.threads
    return scenario.model_copy(update={"engine": scenario.engine.model_copy(update=update)})


def _check_places(scenario: Scenario) -> None:
    places = (("model.id", scenario.model.id), ("corpus.path", scenario.corpus.path))
    for key, place in places:
        if os.path.isabs(place) and not os.path.exists(place):
            raise FedsimError(
                f"{key}: there is no {place}: check the path, or make it"
                " (python -m benchmarks.real_speech fills the cache)"
            )


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()  # refuses a folder that holds anything


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"fedsim {fedsim.__version__}")
        parser.exit()


def _make_parser() -> argparse.ArgumentParser:
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "fedsim",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=shape,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.set_defaults(verb=None)
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND")

    run = verbs.add_parser(
        "run",
        help="run a scenario and print its table",
        description=_RUN_DESCRIPTION,
        formatter_class=shape,
        allow_abbrev=False,
    )
    _add_scenario(run)
    run.add_argument("--engine", metavar="NAME", help="ray or inprocess; see fedsim list")
    run.add_argument("--workers", metavar="N", type=_positive, help="number of worker processes")
    run.add_argument(
        "--threads", metavar="N", type=_positive, help="threads of arithmetic in each process"
    )
    run.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="the run folder, empty or new (default: runs/<scenario>/<UTC time>)",
    )
    run.set_defaults(verb=_run)

    validate = verbs.add_parser(
        "validate",
        help="check a scenario and list its clients",
        description=_VALIDATE_DESCRIPTION,
        formatter_class=shape,
        allow_abbrev=False,
    )
    _add_scenario(validate, nargs="?")
    validate.add_argument(
        "--schema", action="store_true", help="print the JSON Schema of scenario files, for editors"
    )
    validate.set_defaults(verb=_validate)

    listing = verbs.add_parser(
        "list",
        help="list scenarios, and the names that one may use",
        description="List the known scenarios, and each name that a scenario may use for a choice.",
        allow_abbrev=False,
    )
    listing.set_defaults(verb=_list)
    return parser


def _add_scenario(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument(
        "scenario", metavar="SCENARIO", nargs=nargs, help="a YAML file, or a name from fedsim list"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help=_SET_HELP
    )
