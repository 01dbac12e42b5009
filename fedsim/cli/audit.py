"""`fedsim audit`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.cli.links import link
from fedsim.cli.options import positive

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedsim.audit.record import Audited

_DESCRIPTION = """\
Attack what the server sees of each client: infer gender, accent and language, recognize speakers in
a second session, find out which clips a client tuned on; and measure epsilon against the claimed
one. For a run, every combination of its matrix is audited from its ledger and gets an audit.json,
which fedsim report draws beside the word error rate. For a scenario, the releases of its clients
are computed without running it. The exit code is 1 if there is less noise than claimed."""


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the command."""
    audit = verbs.add_parser(
        "audit",
        help="attack what the clients of a run or a scenario release",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    audit.add_argument(
        "subject", metavar="RUN|SCENARIO", help="a run folder, a YAML file or a name"
    )
    audit.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="override keys of the scenario",
    )
    audit.add_argument(
        "--targets",
        metavar="N",
        type=positive,
        default=20,
        help="clients whose clips are attacked (default: 20)",
    )
    audit.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="the file (default: ./audit.json; for a run, audit.json in its folder)",
    )
    audit.set_defaults(verb=_audit)


def _audit(options: argparse.Namespace) -> int:
    from fedsim.errors import FedsimError

    folder = Path(options.subject).expanduser()
    is_run = os.path.isfile(folder / "scenario.yaml")
    if is_run and options.set:
        raise FedsimError(f"{options.subject}: a run is audited as it was: remove --set")

    from fedsim.audit.record import write_audit
    from fedsim.audit.run import audit_run, audit_scenario
    from fedsim.audit.table import print_audits
    from fedsim.results.table import stdout_console

    if is_run:
        audits = _collect(audit_run(folder, options.targets, write=options.out is None))
        place = options.out or folder
    else:
        from fedsim.scenario import find_scenario, load_scenario

        scenario = load_scenario(find_scenario(options.subject), options.set)
        audits = _collect(audit_scenario(scenario, options.targets))
        place = options.out or Path("audit.json")
    if options.out or not is_run:
        write_audit(place, audits)
    print_audits(audits, stdout_console())
    print(f"audit: {link(place)}")
    refuted = [audited.claim for audited in audits if audited.claim and audited.claim.is_refuted]
    for claim in refuted:
        print(f"error: LESS NOISE THAN CLAIMED: {claim.sentence}", file=sys.stderr)
    return 1 if refuted else 0


def _collect(audits: Iterable[Audited]) -> list[Audited]:
    """Return all audits; on a terminal, print the name of each as it finishes."""
    found: list[Audited] = []
    for audited in audits:
        found.append(audited)
        if sys.stderr.isatty():
            from fedsim.audit.table import audit_name

            print(f"audited: {audit_name(audited)}", file=sys.stderr)
    return found
