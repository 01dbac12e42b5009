"""Damage one kind of input again and again, and keep what was read badly.

    python -m benchmarks.fuzz scenario|modelfile|message|ledger|audio [--seconds 60] [--seed 0]

Each finding is a folder below fuzz/<kind>/: the input, and what happened. The exit code is 1 if
there is any.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import random
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.fuzz import Finding

KINDS = ("scenario", "modelfile", "message", "ledger", "audio")


def main() -> int:
    """Fuzz until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    options = parser.parse_args()
    try_one = importlib.import_module(f"benchmarks.fuzz.{options.kind}").try_one
    until = time.monotonic() + options.seconds
    tried, found = 0, 0
    with tempfile.TemporaryDirectory() as home:
        while time.monotonic() < until:
            finding = try_one(random.Random(f"{options.seed} {tried}"), Path(home))
            tried += 1
            if finding is not None:
                found += 1
                print(
                    f"{keep(options.out / options.kind, finding)}: {finding.what.splitlines()[-1]}"
                )
    print(f"{options.kind}: {tried:,} inputs in {options.seconds:g} s, {found} read badly")
    return 1 if found else 0


def keep(folder: Path, finding: Finding) -> Path:
    """Write a finding to a folder named by its content, and return it."""
    place = folder / hashlib.sha256(finding.content).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    (place / "input").write_bytes(finding.content)
    (place / "what.txt").write_text(finding.what, encoding="utf-8")
    return place


if __name__ == "__main__":
    sys.exit(main())
