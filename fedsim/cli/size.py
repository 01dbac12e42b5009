"""`fedsim size`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.cli.links import link
from fedsim.cli.options import add_engine, with_engine
from fedsim.errors import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console
    from rich.table import Table

    from fedsim.runner.sizing import Option, Sizing

_DESCRIPTION = """\
Size a model for devices: for each budget, and each set of bit depths that a runtime may have, the
exact bytes of the file, the plan, the expected error with its interval, memory, and the time on
each class of the device catalogue. Plans and rounding read public clips, nothing of a user."""


_ANY_WIDTH = 10_000
"""Characters: more than any table needs."""
_LEGEND = """
MB loaded: weights in memory, packed, and one layer at a time in float32; activations come on top
seconds: multiply-accumulates over the speed of a class in the device catalogue (docs/fleets.md);
- where its runtime lacks a depth
"""
_MAX_NUMBER = 1e6


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the command."""
    size = verbs.add_parser(
        "size",
        help="size a model for devices: bytes, error, memory and time at each budget",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    size.add_argument("model", metavar="MODEL", help="hub id, bundled:NAME, cache:NAME or folder")
    size.add_argument(
        "--budgets", metavar="MB,...", type=_numbers, required=True, help="such as 20,30,45"
    )
    size.add_argument(
        "--bit-depths",
        metavar="BITS,...",
        type=_depths,
        nargs="+",
        default=[tuple(range(2, 17)), (4, 8)],
        help="sets of bit depths, such as 2-8 4,8 8 (default: 2-16 4,8)",
    )
    size.add_argument(
        "--clips",
        metavar="DIR",
        type=Path,
        help="recordings with texts, in any layout (default: 96 clips of synthetic voices)",
    )
    size.add_argument(
        "--max-error",
        metavar="PERCENT",
        type=_number,
        help="name the smallest option whose error is at most this",
    )
    size.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="override keys of the study that is run",
    )
    add_engine(size)
    size.add_argument(
        "--out", metavar="DIR", type=Path, help="the run folder (default: runs/size/)"
    )
    size.set_defaults(verb=_size)


def _size(options: argparse.Namespace) -> int:
    from rich.console import Console

    from fedsim.api.studies import open_run
    from fedsim.base import progress
    from fedsim.base.paths import resolve
    from fedsim.results.folder import new_run_path
    from fedsim.results.table import stdout_console
    from fedsim.runner.sizing import sizing, sizing_study
    from fedsim.runner.study import run_study

    model = resolve(options.model, Path.cwd())
    study = sizing_study(model, options.budgets, options.bit_depths, options.clips, options.set)
    study = with_engine(study, options)
    out = options.out or new_run_path(study.name)
    with progress.show(Console(stderr=True)):
        run_study(study, out)
    result = open_run(out)
    found = sizing(study, result.run.parts)
    console = stdout_console()
    _print(found, options.max_error, console)
    print(f"report: {link(result.report())}")
    return 0


def _print(found: Sizing, max_error: float | None, console: Console) -> None:
    """Print the page: the model, one line per option, the devices, and the smallest option."""
    from rich.text import Text

    from fedsim.base.units import MB
    from fedsim.runner.sizing import TOKENS_PER_SECOND

    full = f", {found.full.kind} {found.full.text()} %" if found.full else ""
    decoder = f", {TOKENS_PER_SECOND:g} tokens a second" if found.has_tokens else ""
    console.print(
        Text(
            f"{found.model}: {found.weights:,} weights, {found.full_bytes / MB:.2f} MB in full"
            f" precision{full}\n{found.macs / 1e9:.2f} G multiply-accumulates for"
            f" {found.clip_s:g} s of audio{decoder}\n"
        ),
        soft_wrap=True,
    )
    console.print(_options_table(found))
    console.print(Text(f"\nSeconds for {found.clip_s:g} s of audio, by class of device\n"))
    for table in _devices_tables(found, found.classes, console):
        console.print(table)
    console.print(Text(_LEGEND, style="dim"))
    for option in found.options:
        if option.why_not:
            console.print(Text(f"{_name(option)}: {option.why_not}"), soft_wrap=True)
    if max_error is not None:
        console.print(Text("\n".join(_smallest(found, max_error)) + "\n"), soft_wrap=True)


def _options_table(found: Sizing) -> Table:
    from fedsim.base.units import MB
    from fedsim.results.lines import number
    from fedsim.results.table import new_table

    table = new_table()
    kind = found.full.kind if found.full else "error"
    table.add_column("option", no_wrap=True)
    for heading in ("bytes", "mean bits", f"{kind} %", "95 % interval", "MB loaded"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("layers x bits")
    for option in found.options:
        if option.rate is None or option.plan is None:
            table.add_row(_name(option), *("-",) * 6)
            continue
        table.add_row(
            _name(option),
            f"{option.file_bytes:,}",
            f"{option.mean_bits:.2f}",
            number(option.rate.value),
            option.rate.interval().strip() or "-",
            f"{option.loaded_bytes / MB:.2f}",
            " ".join(f"{count}x{bits}" for bits, count in option.plan.items()),
        )
    return table


def _devices_tables(found: Sizing, names: Sequence[str], console: Console) -> Iterator[Table]:
    """Yield one table, or several where all classes of devices do not fit side by side."""
    table, half = _devices_table(found, names), len(names) // 2
    wide = console.measure(table, options=console.options.update(width=_ANY_WIDTH)).maximum
    if half and wide > console.width:
        yield from _devices_tables(found, names[:half], console)
        yield from _devices_tables(found, names[half:], console)
    else:
        yield table


def _devices_table(found: Sizing, names: Sequence[str]) -> Table:
    from fedsim.results.table import new_table

    table = new_table()
    table.add_column("option", no_wrap=True)
    for name in names:
        table.add_column(name.replace("_", "\n"), justify="right", vertical="bottom")
    for option in found.options:
        seconds = option.seconds or dict.fromkeys(names)
        table.add_row(_name(option), *(_time(seconds[name]) for name in names))
    return table


def _smallest(found: Sizing, max_error: float) -> Iterator[str]:
    measured, sure = found.smallest(max_error)
    kind = found.full.kind if found.full else "error"
    held = f"{kind} of at most {max_error:g} %"
    if kind == "accuracy":
        held = f"accuracy of at least {100 - max_error:g} %"
    if measured is None:
        yield f"No option has a {held} on these clips: allow more MB."
        return
    yield f"Smallest with a {held} on these clips: {_name(measured)}."
    if sure is None:
        yield "No option is below it with its whole 95 % interval: more clips narrow that."
    elif sure != measured:
        yield f"Smallest whose whole 95 % interval holds it: {_name(sure)}."


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2g}"


def _name(option: Option) -> str:
    """Return `30 MB, 2-16 bits`, or `30 MB, 4,8 bits`."""
    depths = option.depths
    run = len(depths) > 2 and depths == tuple(range(depths[0], depths[-1] + 1))
    bits = f"{depths[0]}-{depths[-1]}" if run else ",".join(map(str, depths))
    return f"{option.budget_mb:g} MB, {bits} bits"


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= _MAX_NUMBER:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a number above 0")
    return value


def _numbers(text: str) -> list[float]:
    return sorted({_number(word) for word in text.split(",")})


def _depths(text: str) -> tuple[int, ...]:
    """Return the bit depths of `2-8` or `4,8`."""
    found: set[int] = set()
    for word in text.split(","):
        first, dash, last = word.partition("-")
        if not all(part.isdecimal() and len(part) < 3 for part in (first, last if dash else first)):
            raise argparse.ArgumentTypeError(f"{quoted(text)} is not a set of bit depths")
        found |= set(range(int(first), int(last or first) + 1))
    if not found or not found <= set(range(2, 17)):
        raise argparse.ArgumentTypeError(f"{quoted(text)}: use bit depths from 2 to 16")
    return tuple(sorted(found))
