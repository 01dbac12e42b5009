"""The findings of a run as Markdown for docs/results: sentences, rates, comparisons with intervals.

    python -m benchmarks.findings RUN_FOLDER...

The numbers are those of `fedsim report`, over all clients together; benchmarks.markdown prints them
per client.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fedsim.report.findings import answers, comparisons, headline, points
from fedsim.results.labels import heading, plain_value
from fedsim.results.lines import span
from fedsim.results.rates import lines_of
from fedsim.results.runs import read_runs


def main() -> None:
    """Print one section for each run folder."""
    for run in read_runs([Path(name) for name in sys.argv[1:]]):
        lines = [line for part in run.parts for line in lines_of(part)]
        kind = lines[0].rate.kind
        for sentence in headline(lines):
            print(f"- {sentence}")
        for question, found in answers(comparisons(run.parts)):
            print(f"- *{question}* {' '.join(found)}")
        keys = sorted({key for part in run.parts for key in part.settings})
        heads = [*(heading(key) for key in keys), "method", "model MB", "mean bits", f"{kind} %"]
        print("\n| " + " | ".join(heads) + " |")
        print("|---" * len(heads) + "|")
        for line in lines:
            settings = [plain_value(line.part.settings.get(key, "")) for key in keys]
            sizes = [span(line.megabytes, 2), span(line.mean_bits, 2)]
            print("| " + " | ".join([*settings, line.name, *sizes, line.rate.text()]) + " |")
        print("\n| settings | compared | difference, points | verdict |\n|---|---|---|---|")
        for found in comparisons(run.parts):
            first, second = found.pair.spoken
            low, high = points(found.result.low), points(found.result.high)
            print(
                f"| {found.pair.settings} | {first} against {second} | "
                f"{points(found.result.difference)} [{low}, {high}] | {found.result.verdict} |"
            )
        seconds = sum(part.timing.get("seconds", 0) for part in run.parts)
        versions = ", ".join(f"{k} {v}" for k, v in run.parts[0].versions.items())
        print(f"\n{seconds / 60:.1f} minutes. Versions: {versions}\n")


if __name__ == "__main__":
    main()
