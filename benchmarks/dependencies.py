"""Run fedsim with the lowest version of each of its dependencies, and with the highest.

    python -m benchmarks.dependencies lowest highest [--python 3.12] [--tests tests/quant]

Each set is installed into an environment of its own in a temporary folder; then the quickstart
runs, made smaller, and the fast tests of one folder. Needs `uv`, which resolves to the lowest.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
EXTRAS = ("dev", "real-speech")
RESOLUTIONS = {"lowest": "lowest-direct", "highest": "highest"}
SMALL = (
    *("run", "quickstart", "--engine", "inprocess", "--out", "run", "--set"),
    *("corpus.population.speakers=2", "corpus.tuning_clips=1", "corpus.test_clips=1"),
    *("methods=[uniform]", "quantization.rounding=nearest"),
)


def lower_bounds(project: Mapping[str, Any], extras: Iterable[str]) -> list[str]:
    """Return a constraint `name==1.2.*` for each range `>=1.2` of a project and some extras.

    Without them a resolver leaves a lower bound for a newer release of a package below it.

    Args:
        project: the table `project` of pyproject.toml.
        extras: names under `optional-dependencies`.
    """
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    bounds = (
        (requirement.name, bound.version)
        for requirement in map(Requirement, lines)
        for bound in requirement.specifier
        if bound.operator == ">="
    )
    return sorted({f"{name}=={version}.*" for name, version in bounds})


def check(which: str, python: str, tests: str, home: Path) -> bool:
    """Install one set below `home`, run both checks in it, and return whether they passed."""
    environment = home / which
    interpreter = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    _run("uv", "venv", "-q", "-p", python, environment)
    constraints = home / f"{which}.txt"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = lower_bounds(project, EXTRAS) if which == "lowest" else []
    constraints.write_text("\n".join(bounds), encoding="utf-8")
    how = ("--resolution", RESOLUTIONS[which], "--constraints", constraints)
    _run("uv", "pip", "install", "-q", "-p", interpreter, *how, "-e", f"{ROOT}[{','.join(EXTRAS)}]")
    print(f"{which}, Python {python}:", flush=True)
    _run("uv", "pip", "freeze", "-q", "-p", interpreter, "--exclude-editable")
    empty = home / f"{which}-run"
    empty.mkdir()
    ran = _run(interpreter, "-m", "fedsim", *SMALL, cwd=empty, check=False).returncode == 0
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", tests)
    passed = _run(interpreter, *words, cwd=ROOT, check=False).returncode == 0
    print(f"{which}: run {'ended' if ran else 'FAILED'}, tests {'passed' if passed else 'FAILED'}")
    return ran and passed


def _run(
    *words: object, check: bool = True, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([str(word) for word in words], check=check, cwd=cwd, env=clean)


def main() -> None:
    """Check the sets that are asked for; exit with 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="+", choices=sorted(RESOLUTIONS))
    parser.add_argument("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}")
    parser.add_argument("--tests", default="tests/quant")
    options = parser.parse_args()
    if shutil.which("uv") is None:
        sys.exit("uv is not installed; install it (pip install uv)")
    with tempfile.TemporaryDirectory() as home:
        results = [
            check(which, options.python, options.tests, Path(home)) for which in options.which
        ]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
