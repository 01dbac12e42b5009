"""The run folder, `runs/<scenario>/<UTC time>/`, and the files in it."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedsim.base.accelerators import device_facts, find_device
from fedsim.base.files import atomic_write, write_text
from fedsim.base.version import __version__
from fedsim.errors import FedsimError
from fedsim.privacy.budget import SPENT
from fedsim.results.rows import Row, from_arrow, to_arrow
from fedsim.scenario.schema import Scenario

MATRIX_INDEX = "matrix.json"
"""In the folder of a matrix: the settings and the run folder of each combination, in JSON."""
_PACKAGES = (
    *("flwr", "ray", "torch", "transformers", "datasets", "numpy", "jiwer"),
    *("safetensors", "pyarrow", "pydantic", "wordfreq", "espeakng-loader"),
    *("onnx", "onnxscript", "onnxruntime", "openvino"),
)


@dataclass(frozen=True)
class RunFolder:
    """The paths of the files of one run."""

    path: Path

    @property
    def scenario(self) -> Path:
        """The resolved scenario, a YAML file that can be run again."""
        return self.path / "scenario.yaml"

    @property
    def versions(self) -> Path:
        """Versions of Python, the platform and the packages that matter, and the device that
        computes, in JSON."""
        return self.path / "versions.json"

    @property
    def layers(self) -> Path:
        """The model's layers in order, in JSON: name, kind and number of weights."""
        return self.path / "layers.json"

    @property
    def cost(self) -> Path:
        """What the model costs devices, in JSON; only if the scenario has a fleet."""
        return self.path / "cost.json"

    @property
    def timeline(self) -> Path:
        """The Parquet file of the virtual clock, one row per client; only with a fleet, too."""
        return self.path / "timeline.parquet"

    @property
    def timing(self) -> Path:
        """When the run began, how long it took, and with how many workers, in JSON."""
        return self.path / "timing.json"

    @property
    def privacy(self) -> Path:
        """The privacy statement: what is guaranteed for what leaves a device, in JSON."""
        return self.path / "privacy.json"

    @property
    def budget(self) -> Path:
        """What each client has spent of its privacy budget; elsewhere with FEDSIM_PRIVACY_DIR."""
        return self.path / SPENT

    @property
    def ledger(self) -> Path:
        """The SQLite ledger, written as clients finish."""
        return self.path / "ledger.sqlite"

    @property
    def results(self) -> Path:
        """The Parquet file of all results, written at the end."""
        return self.path / "results.parquet"

    @property
    def models(self) -> Path:
        """The folder of model files; only if the scenario sets `save_models`."""
        return self.path / "models"


def create_run(out: Path | None, scenario: Scenario) -> RunFolder:
    """Create the run folder and write the scenario, the versions and the device to it.

    Args:
        out: the folder, which must be empty or missing; None for a new one in
            `runs/<scenario name>/`, named by the UTC time.
        scenario: the scenario to run.

    Raises:
        FedsimError: if `out` is not empty, the folder cannot be created or written, or the
            scenario's device is not there.
    """
    found = find_device(scenario.engine.device, where="engine.device")
    device = {DEVICE: device_facts(found)}
    try:
        path = new_run_path(scenario.name) if out is None else _take_empty(out)
        folder = RunFolder(path.absolute())
        write_text(folder.scenario, scenario.to_yaml())
        write_text(folder.versions, json.dumps(versions() | device, indent=2) + "\n")
        if scenario.save_models:
            folder.models.mkdir()
    except OSError as error:
        raise _unwritable(error, out or Path("runs")) from error
    return folder


DEVICE = "device"
"""What versions.json calls the device that computes."""
RELEVANT_VERSIONS = ("fedsim", "torch", "transformers", "numpy")
"""Packages whose other versions may give other results."""


def open_run(path: Path) -> RunFolder:
    """Return the folder of a run that was begun, to resume it.

    Raises:
        FedsimError: if it is not a run folder.
    """
    folder = RunFolder(path.expanduser().absolute())
    if not folder.scenario.is_file() or not folder.versions.is_file():
        raise FedsimError(
            f"{path}: this is not a run folder (it lacks scenario.yaml or versions.json): name the"
            f" folder that the run printed"
        )
    return folder


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Lock a run folder for this process; the lock is released however the process ends.

    Raises:
        FedsimError: if another process has locked it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FedsimError(
            f"{folder.path}: another process is running in this folder: wait until it has ended,"
            f" or name another --out folder"
        ) from None
    except OSError as error:
        raise _unwritable(error, folder.path) from error
    try:
        yield
    finally:
        lock.release()


def new_run_path(name: str) -> Path:
    """Create an empty folder `runs/<name>/<UTC time>` in the working folder; return its path.

    Raises:
        FedsimError: if it cannot be created.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        path = Path("runs") / name / (stamp + suffix)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if path.exists():
                continue  # another run began in the same second
            raise FedsimError(
                f"{path}: a file is in the place of this folder: move it, or name an --out folder"
            ) from None
        except OSError as error:
            raise _unwritable(error, path) from error
        return path
    raise FedsimError(f"runs/{name}/{stamp}: 999 runs began in this second: wait a second")


def write_results(folder: RunFolder, rows: Sequence[Row], scenario: Scenario) -> None:
    """Write `results.parquet`, whole or not at all; equal results give equal bytes.

    The file's metadata holds `fedsim.scenario` (the name), `fedsim.text_normalizer` and
    `fedsim.scenario_json`. The latter
    leaves out `engine`, on which no result depends, so that files of two engines can be compared.

    Raises:
        FedsimError: if the file cannot be written.
    """
    import pyarrow.parquet as pq

    metadata = {
        "fedsim.scenario": scenario.name,
        "fedsim.text_normalizer": scenario.text_normalizer,
        "fedsim.scenario_json": scenario.model_dump_json(exclude={"engine"}),
    }
    try:
        with atomic_write(folder.results) as file:
            pq.write_table(
                to_arrow(rows, metadata), file, compression="zstd", write_page_checksum=True
            )
    except OSError as error:
        raise _unwritable(error, folder.results) from error


def read_results(path: Path) -> list[Row]:
    """Return the rows of a `results.parquet`.

    Raises:
        FedsimError: if the file cannot be read, is damaged, or of another version of fedsim.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return from_arrow(pq.read_table(path, page_checksum_verification=True))
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        raise FedsimError(
            f"{path}: these are not results of this version of fedsim, or the file is damaged:"
            f" restore it, or run the scenario again"
        ) from error


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform and the packages that results may depend on."""
    installed = {
        "fedsim": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
    }
    return installed | {name: version_of(name) for name in _PACKAGES}


@cache
def version_of(package: str) -> str:
    """Return the version of an installed package, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _take_empty(out: Path) -> Path:
    path = out.expanduser()
    if path.exists() and not path.is_dir():
        raise FedsimError(f"{path}: this is a file: name an empty or new folder")
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise FedsimError(f"{path}: the folder is not empty: name an empty or new one")
    return path


def _unwritable(error: OSError, path: Path) -> FedsimError:
    reason = (error.strerror or str(error)).lower()
    return FedsimError(
        f"{error.filename or path}: the run cannot be written here ({reason}): check permissions"
        f" and free space, or name another --out folder"
    )
