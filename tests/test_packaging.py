"""fedsim where a user works: a folder with a server.py and a clients/ of the user's own."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = (
    *("run", "quickstart", "--engine", "inprocess", "--out", "run", "--no-report", "--set"),
    *("corpus.population.speakers=2", "corpus.tuning_clips=1", "corpus.test_clips=1"),
    *("methods=[uniform]", "quantization.rounding=nearest"),
)
THEIRS = 'raise RuntimeError("this file belongs to somebody else")\n'


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, unpacked as pip would unpack it into site-packages."""
    home = tmp_path_factory.mktemp("wheel")
    command = ("pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(home), ROOT)
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
