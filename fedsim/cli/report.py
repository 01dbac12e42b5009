"""`fedsim report`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fedsim.cli.links import link

_DESCRIPTION = """\
Write report.html into a run folder: the findings in plain sentences, figures, sortable tables, the
scenario and how to repeat it. It is one file that needs no network. Several run folders are
reported side by side. An unfinished run is reported as far as it got, and marked as partial."""


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the command."""
    report = verbs.add_parser(
        "report",
        help="write the report of one or several runs",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    report.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="a run folder, as fedsim run printed it"
    )
    report.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="the report (default: RUN/report.html; for several runs ./report.html)",
    )
    report.add_argument(
        "--figures", metavar="DIR", type=Path, help="write each figure to DIR as HTML, SVG and PNG"
    )
    report.set_defaults(verb=_report)


def _report(options: argparse.Namespace) -> int:
    from fedsim.report.page import write_report

    made = write_report(options.runs, options.out, options.figures)
    for gap in made.gaps:
        print(f"partial: {gap}", file=sys.stderr)
    if options.figures is not None:
        print(f"figures: {len(made.figures)} files in {link(options.figures)}")
    print(f"report: {link(made.path)}")
    return 0
