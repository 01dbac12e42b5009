"""Where files are: the cache folder, and what a path or hub id in a scenario refers to."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fedsim.errors import FedsimError, nearest

CACHE_PREFIX = "cache:"
BUNDLED_PREFIX = "bundled:"
_BUNDLED = Path(__file__).parents[1] / "bundled"


def cache_dir() -> Path:
    """Return the cache folder, which may not exist: `$FEDSIM_CACHE`, or `~/.cache/fedsim`."""
    return Path(os.environ.get("FEDSIM_CACHE") or "~/.cache/fedsim").expanduser().absolute()


def bundled_names() -> list[str]:
    """Return the ids of the models that come with fedsim, sorted."""
    return sorted(BUNDLED_PREFIX + c.parent.name for c in _BUNDLED.glob("*/config.json"))


def bundled_folder(model: str) -> Path:
    """Return the folder of the model `bundled:NAME`; raises `FedsimError` for an unknown name."""
    if model not in bundled_names():
        raise FedsimError(f"{model!r} does not come with fedsim: {nearest(model, bundled_names())}")
    return _BUNDLED / model.removeprefix(BUNDLED_PREFIX)


def is_path(text: str) -> bool:
    """Return whether a resolved `text` is a path on this machine rather than a hub id."""
    return os.path.isabs(text)


def resolve(text: str, base: Path) -> str:
    """Return what `text` in a scenario refers to: an absolute path, or a hub id unchanged.

    `bundled:NAME`, a model that comes with fedsim, is unchanged too, as it means the same on every
    machine. `cache:NAME` is a folder in the cache; `~` and `$VARIABLES` are expanded; text that
    begins with `./`, `../` or `/` is a path; anything else is a path if it exists in `base`, and a
    hub id otherwise.

    Args:
        text: a scenario's `model.id` or `corpus.path`.
        base: the folder of the scenario's YAML file; relative paths start there.

    Raises:
        FedsimError: for an unknown bundled model, a cache name that leads out of the cache folder,
            and a variable that is not set.
    """
    if text.startswith(BUNDLED_PREFIX):
        bundled_folder(text)
        return text
    if text.startswith(CACHE_PREFIX):
        name = text.removeprefix(CACHE_PREFIX)
        if not name or os.path.isabs(name) or ".." in Path(name).parts:
            raise FedsimError(f"{text!r} is not a folder inside the cache; write cache:NAME")
        return str(cache_dir() / name)
    expanded = os.path.expanduser(os.path.expandvars(text))
    unset = re.search(r"\$(\w+|\{\w+\})", expanded)
    if unset:
        raise FedsimError(f"{text!r} uses {unset[0]}, which is not set; set that variable")
    is_relative = expanded in (".", "..") or expanded.startswith(("./", "../"))
    path = base.expanduser().absolute() / expanded
    if (
        os.path.isabs(expanded) or is_relative or os.path.exists(path)
    ):  # not Path.exists: it raises for names too long
        return os.path.normpath(path)
    return text
