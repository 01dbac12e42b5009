"""The table and the remarks that an audit prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsim.audit.record import Audited
from fedsim.privacy.attacks.result import Finding
from fedsim.results.labels import settings_label


def print_audits(audits: Sequence[Audited], console: Console) -> None:
    """Print one line per figure of each attack, then what could not be measured and why."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for head in ("release", "inferred", "figure"):
        table.add_column(head)
    for head in ("value", "95 % interval", "chance", "n"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict")
    for audited in audits:
        name = audit_name(audited)
        for finding in audited.findings:
            table.add_row(name, *_cells(finding))
            name = ""
    console.print(table)
    console.print(
        Text("\nAUC 0.5 is guessing; TPR: members found while 1 % or 0.1 % of others are")
    )
    console.print(Text("accused falsely; shuffled labels: the same attack where there is no leak"))
    for audited in audits:
        for finding in audited.findings:
            if finding.value is None:
                console.print(
                    Text(f"  {audit_name(audited)}: {finding.sentence()}"), soft_wrap=True
                )
        if audited.claim is not None:
            verdict = f"{audit_name(audited)}: {audited.claim.sentence}"
            style = "bold red" if audited.claim.is_refuted else ""
            console.print(Text(f"  {verdict}", style=style), soft_wrap=True)


def audit_name(audited: Audited) -> str:
    """Return the settings of an audit in words, or its release where it has none."""
    return settings_label(audited.settings) or audited.release


def _cells(finding: Finding) -> tuple[str, ...]:
    if finding.value is None or finding.low is None or finding.high is None:
        return finding.attribute, finding.figure, "-", "-", "-", f"{finding.n:,}", "not measured"
    return (
        finding.attribute,
        finding.figure,
        f"{finding.value:.3f}",
        f"[{finding.low:.3f}, {finding.high:.3f}]",
        f"{finding.chance:.3f}",
        f"{finding.n:,}",
        finding.verdict,
    )
