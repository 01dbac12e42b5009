"""Word errors against megabytes: every model of a matrix over budgets, as Markdown tables.

    python -m benchmarks.frontier RUN_FOLDER [--clients] [--against WORDS]...

One line per model, one column per budget: WER (or CER) in percent with its 95 % interval, and its
difference in points from full precision, paired clip by clip. `--against` adds a table of
differences from the one model whose name contains these words. `--clients` prints each client for
itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from fedsim.report.findings import difference, points
from fedsim.results.labels import BUDGET
from fedsim.results.rates import PartLine, lines_of
from fedsim.results.runs import Part, read_runs

Frontier = dict[str, dict[float, PartLine]]
"""Name of a model -> budget in MB -> its line."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--against", action="append", default=[], metavar="WORDS")
    parser.add_argument("--clients", action="store_true")
    options = parser.parse_args()
    (run,) = read_runs([options.run])
    every = sorted({row.client for part in run.parts for row in part.rows})
    for clients in [[one] for one in every] if options.clients else [every]:
        if options.clients:
            print(f"\n## {clients[0]}")
        found = frontier(run.parts, clients)
        kind = next(line.rate.kind for lines in found.values() for line in lines.values())
        print_table(f"{kind} %", found, lambda line, budget: line.rate.text())
        for words in ["full precision", *options.against]:
            for base in [name for name in found if words in name]:
                print_table(f"against {base}", found, against(found[base]))
    seconds = sum(part.timing.get("seconds", 0) for part in run.parts)
    versions = ", ".join(f"{key} {value}" for key, value in run.parts[0].versions.items())
    print(f"\n{seconds / 60:.1f} minutes. Versions: {versions}")


def frontier(parts: Iterable[Part], clients: list[str]) -> Frontier:
    """Return the lines of all parts, of some clients together."""
    found: Frontier = {}
    for part in parts:
        budget = part.settings.get(BUDGET, 0)
        for line in lines_of(part):
            rows = tuple(row for row in line.rows if row.client in clients)
            settings = "" if line.is_full_precision else part.label_but_budget
            name = f"{settings}: {line.name}".removeprefix(": ")
            if rows:
                found.setdefault(name, {}).setdefault(budget, replace(line, rows=rows))
    return found


def against(base: dict[float, PartLine]) -> Callable[[PartLine, float], str]:
    """Return what writes the difference of a line from the base at the same budget, in points."""

    def text(line: PartLine, budget: float) -> str:
        if budget not in base or line == base[budget]:
            return "–"
        one = difference(line, base[budget])
        if one is None:
            return "–"
        return f"{points(one.difference)} [{points(one.low)}, {points(one.high)}]"

    return text


def print_table(title: str, found: Frontier, text: Callable[[PartLine, float], str]) -> None:
    """Print one table: a line per model, a column per budget."""
    budgets = sorted({budget for lines in found.values() for budget in lines})
    print(f"\n| {title} | " + " | ".join(f"{budget:g} MB" for budget in budgets) + " |")
    print("|---" * (len(budgets) + 1) + "|")
    for name, lines in found.items():
        cells = [text(lines[b], b) if b in lines else "–" for b in budgets]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
