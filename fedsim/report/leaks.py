"""What audits found, and what the same releases cost: the data of a figure and of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedsim.audit.record import FILE, read_audit
from fedsim.privacy.attacks.result import Finding
from fedsim.quant.allocation import ALLOCATORS
from fedsim.report.cells import Cell, HtmlTable, table_of
from fedsim.report.tables import Table
from fedsim.results.lines import Kind, Source, kind_of
from fedsim.results.rates import PartLine, lines_of
from fedsim.results.runs import Part

_SHOWN = {
    ("gender", "AUC"): "gender, AUC",
    ("accent", "AUC"): "accent, AUC",
    ("language", "AUC"): "language, AUC",
    ("the speaker", "rank-1"): "the speaker in another session, rank-1",
    ("a tuning clip", "AUC"): "a clip that was tuned on, AUC",
}
"""(attribute, measure) of the attacks that are drawn -> the title of their panel."""


def findings_of(part: Part) -> list[Finding]:
    """Return the findings of the audits of a part; empty if there was none."""
    return [finding for audited in read_audit(part.path / FILE) for finding in audited.findings]


def leak_points(parts: Sequence[Part], kind: Kind) -> Table:
    """Return one row per part and attack: the rate of its models, and what its release reveals.

    Columns: panel, line, rate, low, high (of the models, in percent), leak, leak_low, leak_high,
    chance, full (the rate of full precision, or None).
    """
    table: Table = []
    for part in parts:
        planned = _planned(part)
        if planned is None or kind_of(planned.rows) != kind:
            continue
        full = [x.rate.value for x in lines_of(part) if x.is_full_precision]
        for finding in findings_of(part):
            panel = _SHOWN.get((finding.attribute, finding.figure))
            if panel is None or finding.value is None:
                continue
            table.append(
                {
                    "panel": panel,
                    "line": part.label or finding.release,
                    "rate": planned.rate.value,
                    "low": planned.rate.low,
                    "high": planned.rate.high,
                    "leak": finding.value,
                    "leak_low": finding.low,
                    "leak_high": finding.high,
                    "chance": finding.chance,
                    "full": full[0] if full else None,
                }
            )
    return table


def _planned(part: Part) -> PartLine | None:
    """Return the line of the first method whose plans depend on what clients released."""
    lines = [x for x in lines_of(part) if _reads_profile(x) and x.source is Source.OWN]
    return lines[0] if lines and lines[0].rate.value is not None else None


def _reads_profile(line: PartLine) -> bool:
    return not line.is_full_precision and ALLOCATORS[line.allocation].reads != "nothing"


def leaks_table(parts: Sequence[Part]) -> HtmlTable:
    """Return one row per measure of each attack, including those that could not be measured."""
    heads = ["release", "inferred", "measure", "value", "95 % interval", "chance", "n", "verdict"]
    return table_of(heads, list(_rows(parts)))


def _rows(parts: Sequence[Part]) -> Iterator[list[Cell]]:
    for part in parts:
        for finding in findings_of(part):
            measured = finding.value is not None
            interval = f"[{finding.low:.3f}, {finding.high:.3f}]" if measured else "-"
            yield [
                Cell(part.label or finding.release),
                Cell(finding.attribute),
                Cell(finding.figure),
                Cell(f"{finding.value:.3f}" if measured else "-", finding.value),
                Cell(interval, finding.low),
                Cell(
                    f"{finding.chance:.3f}" if measured else "-",
                    finding.chance if measured else None,
                ),
                Cell(f"{finding.n:,}", finding.n),
                Cell(finding.verdict if measured else f"not measured: {finding.note}"),
            ]
