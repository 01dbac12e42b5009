"""What each release of an audited matrix reveals and costs, as Markdown tables.

    python -m benchmarks.leaks RUN_FOLDER        (after fedsim run and fedsim audit)

Word errors are those of the personal plan (`myqasr`). Their differences from the public plan
(release `none`) and from a shuffled order are over the same clips, with 95 % intervals over
speakers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fedsim.audit.record import FILE, Audited, read_audit
from fedsim.base.statistics import Comparison
from fedsim.report.findings import difference
from fedsim.results.rates import PartLine, lines_of
from fedsim.results.runs import Part, read_runs

FIGURES = (
    ("gender", "AUC"),
    ("accent", "AUC"),
    ("the speaker", "rank-1"),
    ("the speaker", "AUC"),
    ("a tuning clip", "AUC"),
    ("a tuning clip", "TPR at 1 % FPR"),
)


def main() -> None:
    """Print the tables."""
    (run,) = read_runs([Path(sys.argv[1])])
    found = [(part, read_audit(part.path / FILE)[0]) for part in run.parts]
    public = next(part for part, audited in found if audited.release == "none")
    heads = [f"{attribute}, {figure}" for attribute, figure in FIGURES]
    print("| release | " + " | ".join(heads) + " | ε from below |")
    print("|---" * (len(heads) + 2) + "|")
    for part, audited in found:
        cells = [_finding(audited, *figure) for figure in FIGURES]
        claim = "–" if audited.claim is None else f"{audited.claim.at_least:.2g}"
        print(f"| {part.label} | " + " | ".join(cells) + f" | {claim} |")
    print("\n| release | WER % | against the public plan | against a shuffled order |")
    print("|---|---|---|---|")
    for part, _ in found:
        own, shuffled = _line(part, "myqasr"), _line(part, "shuffled")
        differences = [_difference(own, _line(public, "myqasr")), _difference(own, shuffled)]
        print(f"| {part.label} | {own.rate.text()} | " + " | ".join(differences) + " |")


def _finding(audited: Audited, attribute: str, figure: str) -> str:
    for one in audited.findings:
        if (one.attribute, one.figure) == (attribute, figure):
            return "–" if one.value is None else f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"
    return "–"


def _line(part: Part, allocation: str) -> PartLine:
    return next(line for line in lines_of(part) if line.allocation == allocation)


def _difference(first: PartLine, second: PartLine) -> str:
    found: Comparison | None = difference(first, second)
    if found is None:
        return "–"
    each = (100 * value for value in (found.difference, found.low, found.high))
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*each)


if __name__ == "__main__":
    main()
