"""The command line: `fedsim run`, `report`, `estimate` and others, one module per command.

It starts quickly: a command imports what it needs when it runs. Exit codes: 0 success; 1 an error,
or no client finished; 2 wrong usage; 130 interrupted by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from fedsim.base.interrupts import stoppable
from fedsim.base.version import __version__
from fedsim.cli import audit, estimate, export, init, listing, report, run, size, validate, voices
from fedsim.errors import FedsimError, on_a_screen

_DESCRIPTION = """\
Simulate federated personalization of a speech model: every client gets a mixed-precision copy of
the model that fits its own memory budget, made from a few of its unlabelled clips (myQASR)."""

_EPILOG = """\
examples:
  fedsim init my.yaml                          write a scenario to start from
  fedsim list                                  show the scenarios, and the names they may use
  fedsim validate prompts_languages            check a scenario and list its clients
  fedsim run prompts_languages --workers 2     run it and print its table
  fedsim run my.yaml --set clients.budget_mb=40 methods.0.calibration=[minmax]

exit codes: 0 success; 1 an error, or no client finished; 2 wrong usage; 130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: the words after `fedsim`; None takes them from `sys.argv`.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        with stoppable():
            code = _print_help(parser) if options.verb is None else options.verb(options)
        sys.stdout.flush()  # here, where a closed pipe can still be handled
        return int(code)
    except FedsimError as error:
        for line in on_a_screen(str(error)):
            print(f"error: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe: send what is printed at exit nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _print_help(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return 0


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"fedsim {__version__}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with a subparser for each command."""
    return _parsers()[0]


def command_helps() -> dict[str, str]:
    """Return what `--help` prints: of `fedsim` itself, and of each command."""
    parser, commands = _parsers()
    helps = {f"fedsim {name}": command.format_help() for name, command in commands.items()}
    return {"fedsim": parser.format_help(), **helps}


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        "fedsim",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.set_defaults(verb=None)
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (run, estimate, size, report, audit, export, init, validate, listing, voices):
        command.add(verbs)
    return parser, dict(verbs.choices)
