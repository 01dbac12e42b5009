"""A run's results as a Markdown table with intervals, for docs/results.

    python -m benchmarks.markdown RUN_FOLDER

One line per method and source of the plan, one column per client; each cell holds the WER (or
CER, or accuracy) in percent, with its 95 % bootstrap interval over the client's test clips.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fedsim.base.units import MB
from fedsim.results.folder import RunFolder, read_results
from fedsim.results.lines import source_of
from fedsim.results.rows import Row


def cell(row: Row) -> str:
    """Return rate and interval in percent."""
    rate = {"wer": row.wer, "cer": row.cer, "accuracy": row.accuracy}[row.metric]
    if rate is None or row.low is None or row.high is None:
        return "–"
    return f"{100 * rate:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"


def main() -> None:
    """Print the table."""
    folder = RunFolder(Path(sys.argv[1]))
    rows = read_results(folder.results)
    clients = sorted({row.client for row in rows})
    budgets = {row.client: row.budget_bytes / MB for row in rows}
    words = {row.client: row.words or row.clips for row in rows}
    lines = sorted({(row.method != "fp32", row.method, source_of(row).value) for row in rows})
    cells = {(row.method, source_of(row).value, row.client): cell(row) for row in rows}
    heads = [f"{c}, {budgets[c]:g} MB ({words[c]} words)" for c in clients]
    print("| method | tuned on | " + " | ".join(heads) + " |")
    print("|---" * (2 + len(clients)) + "|")
    for _, method, whose in lines:
        found = [cells.get((method, whose, c), "–") for c in clients]
        print(f"| {method} | {whose} | " + " | ".join(found) + " |")
    print()
    versions = json.loads(folder.versions.read_text(encoding="utf-8"))
    print("Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()))


if __name__ == "__main__":
    main()
