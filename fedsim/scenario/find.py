"""The known scenario files, and which one a name on the command line means."""

from __future__ import annotations

import os
from pathlib import Path

from fedsim.errors import FedsimError, nearest, quoted
from fedsim.scenario.load import describe_scenario

_ENDINGS = (".yaml", ".yml")


def find_scenario(name_or_path: str | Path) -> Path:
    """Return the scenario file that a path, or a bare name such as `prompts_languages`, means.

    Raises:
        FedsimError: if there is no such file; its text has the nearest known name.
    """
    path = Path(name_or_path).expanduser()
    if os.path.isfile(path):
        return path
    known = _known_scenarios()
    name = path.with_suffix("").as_posix() if path.suffix in _ENDINGS else path.as_posix()
    if name in known:
        return known[name]
    if os.path.isdir(path):
        raise FedsimError(f"{path}: this is a folder: name the YAML file in it")
    raise FedsimError(f"there is no scenario {quoted(str(name_or_path))}: {nearest(name, known)}")


def list_scenarios() -> list[tuple[str, str]]:
    """Return the name and the first line of the description of every known scenario."""
    return [(name, describe_scenario(path)) for name, path in sorted(_known_scenarios().items())]


def _known_scenarios() -> dict[str, Path]:
    """Return name -> file, such as `quickstart` or `paper/gender`.

    A file in the working folder takes precedence over one of fedsim's of the same name.
    """
    package = Path(__file__).parent.parent
    known: dict[str, Path] = {}
    for folder in (Path("scenarios"), package / "scenarios", package.parent / "scenarios"):
        for path in sorted((*folder.glob("*"), *folder.glob("*/*"))):
            if path.suffix in _ENDINGS and path.is_file():
                known.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return known
