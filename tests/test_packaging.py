"""fedsim where a user works: a folder with a server.py and a clients/ of the user's own.

The wheel is built from the source distribution, as pip does where there is no wheel.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import fedsim

ROOT = Path(__file__).parents[1]
SMALL = (
    *("run", "quickstart", "--engine", "inprocess", "--out", "run", "--no-report", "--set"),
    *("corpus.population.speakers=2", "corpus.tuning_clips=1", "corpus.test_clips=1"),
    *("methods=[uniform]", "quantization.rounding=nearest"),
)
FOLDERS = (
    *(".ci", "fedsim", "clients", "server", "scenarios", "tests", "benchmarks", "training"),
    *("notebooks", "docs"),
)
CACHES = {"__pycache__", ".ipynb_checkpoints", ".hypothesis"}
THEIRS = 'raise RuntimeError("this file belongs to somebody else")\n'


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The source distribution."""
    home = tmp_path_factory.mktemp("sdist")
    build = f"from hatchling.build import build_sdist; build_sdist({str(home)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True)
    (built,) = home.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def sources(sdist) -> Path:
    """The source distribution, unpacked."""
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent)
    (folder,) = (path for path in sdist.parent.iterdir() if path.is_dir())
    return folder


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """The wheel, unpacked as pip would unpack it into site-packages."""
    home = tmp_path_factory.mktemp("wheel")
    command = ("pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", home, sdist)
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True)
    (built,) = home.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(home / "site")
    return home / "site"


@pytest.fixture
def users_folder(tmp_path) -> Path:
    """A folder in which every name that fedsim once took belongs to the user."""
    (tmp_path / "server.py").write_text(THEIRS)
    (tmp_path / "client.py").write_text(THEIRS)
    for name in ("clients", "tests", "training"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(THEIRS)
    return tmp_path


def run(folder: Path, *words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_installs_names_that_nobody_else_has(wheel):
    names = {p.name for p in wheel.iterdir() if not p.name.endswith(".dist-info")}
    assert names == {"fedsim", "fedsim_clients", "fedsim_server"}


def test_the_source_distribution_holds_the_repository(sources):
    """Tests, documentation and notebooks read one another, and pyproject.toml names folders."""
    there, here = (
        {
            str(path.relative_to(folder))
            for name in (*FOLDERS, "*.md", "*.yml", "*.cff", "LICENSE")
            for top in folder.glob(name)
            for path in ([top] if top.is_file() else top.rglob("*"))
            if path.is_file() and not CACHES.intersection(path.parts)
        }
        for folder in (sources, ROOT)
    )
    assert there == here
    assert {"mkdocs.yml", "docs/examples/recognize.py", ".ci/run", "SECURITY.md"} <= there


def test_the_wheel_carries_what_fedsim_reads(wheel):
    """All but the modules themselves: types, models with their cards, templates, scenarios."""
    there, here = (
        {
            str(path.relative_to(folder))
            for path in (folder / "fedsim").rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        for folder in (wheel, ROOT)
    )
    studies = (path for path in (ROOT / "scenarios").rglob("*") if path.is_file())
    scenarios = {f"fedsim/{path.relative_to(ROOT)}" for path in studies}
    assert there == here | scenarios
    assert {"fedsim/py.typed", "fedsim/report/report.css", "fedsim/fleet/catalogue.yaml"} <= there
    cards = list((wheel / "fedsim/bundled").glob("*/README.md"))
    assert len(cards) == len(list((wheel / "fedsim/bundled").iterdir())) > 1


def test_one_version(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = project["version"]
    assert fedsim.__version__ == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert citation["license"] == project["license"]
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (wheel / f"fedsim_speech-{version}.dist-info").is_dir()


def test_a_run_from_the_wheel(wheel, users_folder):
    ran = run(users_folder, "-m", "fedsim", *SMALL, path=str(wheel))
    assert ran.returncode == 0, ran.stderr
    assert "uniform/dynamic" in ran.stdout
    where = run(
        users_folder, "-c", "import fedsim_server; print(fedsim_server.__file__)", path=str(wheel)
    )
    assert where.stdout.startswith(str(wheel))


@pytest.mark.slow
def test_a_run_from_the_installed_package(users_folder):
    """As `pip install -e .` or `pip install` has put it where Python finds it."""
    ran = run(users_folder, "-m", "fedsim", *SMALL)
    assert ran.returncode == 0, ran.stderr
    assert "uniform/dynamic" in ran.stdout


@pytest.mark.slow
def test_a_run_on_ray_from_the_wheel(wheel, users_folder):
    words = [word.replace("inprocess", "ray") for word in SMALL]
    ran = run(users_folder, "-m", "fedsim", *words, path=str(wheel))
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_the_tests_of_the_source_distribution_are_found_and_its_documentation_holds(sources):
    path = os.pathsep.join(map(str, (sources, sources / "clients", sources / "server")))
    found = run(sources, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", path=path)
    assert found.returncode == 0, found.stdout
    held = run(sources, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_docs.py", path=path)
    assert held.returncode == 0, held.stdout
