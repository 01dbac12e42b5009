"""The tables of a report on clients together: how evenly they are served."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.report.cells import (
    Cell,
    HtmlTable,
    count_cell,
    number_cell,
    setting_keys,
    settings_cells,
    table_of,
)
from fedsim.results.fairness import fairness_of
from fedsim.results.labels import heading
from fedsim.results.rare import HEADING, rare_phrase
from fedsim.results.rates import PartLine


def fairness_table(lines: Sequence[PartLine]) -> HtmlTable:
    """Return one row per line with several clients: their mean, median, worst tenth and spread,
    the clips that are no worse than in full precision, and the errors on rare words."""
    found = [(line, fairness) for line in lines if (fairness := fairness_of(line))]
    found = [(line, fairness) for line, fairness in found if fairness.over_clients.clients > 1]
    keys = setting_keys(line.part for line, _ in found)
    kinds = {line.rate.kind for line, _ in found}
    compared = any(fairness.no_worse is not None for _, fairness in found)
    percent = f"{next(iter(kinds))} %" if len(kinds) == 1 else "%"
    heads = [*map(heading, keys), "method", "tuned on", *(["rate"] if len(kinds) > 1 else [])]
    heads += ["clients", f"mean {percent}", "median", "worst tenth", "spread, points"]
    counted = any(fairness.rare is not None for _, fairness in found)
    rows = []
    for line, fairness in found:
        over = fairness.over_clients
        cells = [*settings_cells(line.part, keys), Cell(line.method), Cell(line.source.value)]
        cells += [Cell(line.rate.kind)] if len(kinds) > 1 else []
        cells += [count_cell(over.clients)]
        cells += map(number_cell, (over.mean, over.median, over.worst_tenth, over.spread))
        cells += [number_cell(fairness.no_worse)] if compared else []
        rare = None if fairness.rare is None else fairness.rare.value
        rows.append(cells + ([number_cell(rare)] if counted else []))
    heads += ["clips no worse, %"] if compared else []
    return table_of([*heads, *([HEADING] if counted else [])], rows)


def fairness_sentences(lines: Sequence[PartLine]) -> list[str]:
    """Return in words how evenly the clients of each of some lines are served."""
    sentences = []
    for line in lines:
        fairness = fairness_of(line)
        if fairness is None or fairness.over_clients.clients < 2:
            continue
        over, kind = fairness.over_clients, line.rate.kind
        worst = "the client that is" if over.clients <= 10 else "the tenth of them that is"
        sentence = (
            f"{line.phrase}: the mean over {over.clients:,} clients is {kind} {over.mean:.1f} %,"
            f" and {over.worst_tenth:.1f} % of {worst} served worst"
        )
        if fairness.no_worse is not None:
            sentence += (
                f"; {fairness.no_worse:.0f} % of the clips got no worse than in full precision"
            )
        if fairness.rare is not None:
            sentence += f"; {fairness.rare.value:.1f} % of the {rare_phrase(line.rows)} are wrong"
        sentences.append(f"{sentence}.")
    return sentences
