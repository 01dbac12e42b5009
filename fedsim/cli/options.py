"""Options that several commands share, and the scenario and engine that they choose."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from fedsim.errors import FedsimError, quoted

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

_MAX_DIGITS = 9
_SET_HELP = """\
override keys of the scenario: a dotted key, list items by index, and a value in YAML,
such as clients.budget_mb=40 or methods.0.calibration=[minmax,cosine]"""


def add_scenario(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Add the scenario and its overrides to a command's options."""
    parser.add_argument(
        "scenario", metavar="SCENARIO", nargs=nargs, help="a YAML file, or a name from fedsim list"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help=_SET_HELP
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the choice of an engine to a command's options."""
    parser.add_argument("--engine", metavar="NAME", help="auto, inprocess or ray; see fedsim list")
    parser.add_argument("--workers", metavar="N", type=positive, help="number of worker processes")
    parser.add_argument(
        "--threads", metavar="N", type=positive, help="threads of arithmetic in each process"
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="the Ray cluster to join, or auto: see docs/scale.md"
    )
    parser.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or mps: see docs/gpus.md")


def with_engine(scenario: Scenario, options: argparse.Namespace) -> Scenario:
    """Return the scenario with the engine that the options choose.

    Raises `FedsimError` for an engine of an unknown name.
    """
    update: dict[str, Any] = {}
    if options.engine is not None:
        from fedsim.scenario.engine import ENGINE

        mistake = ENGINE.mistake(options.engine)
        if mistake is not None:
            raise FedsimError(f"--engine: {mistake}")
        update["kind"] = options.engine
    for name in ("workers", "threads", "address", "device"):
        if getattr(options, name) is not None:
            update[name] = getattr(options, name)
    from pydantic import ValidationError

    from fedsim.scenario.engine import EngineChoice
    from fedsim.scenario.explain import sentences

    try:
        engine = EngineChoice.model_validate({**scenario.engine.model_dump(), **update})
    except ValidationError as error:
        found = sentences(error, EngineChoice, lambda path: f"--{path[0]}")
        raise FedsimError("\n".join(found)) from None
    return scenario.model_copy(update={"engine": engine})


def chosen_scenario(options: argparse.Namespace) -> Scenario:
    """Return the scenario that the options name, with their overrides."""
    from fedsim.scenario import find_scenario, load_scenario

    return load_scenario(find_scenario(options.scenario), options.set)


def positive(text: str) -> int:
    """Return `text` as a whole number of at least 1; for argparse."""
    digits = text if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else "0"
    if int(digits) < 1:
        raise argparse.ArgumentTypeError(
            f"{quoted(text)} is not a whole number from 1 to {10**_MAX_DIGITS - 1:,}"
        )
    return int(digits)
