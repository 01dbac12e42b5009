"""Which layout a folder or a manifest has: `corpus.kind: auto`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fedsim.errors import FedsimError
from fedsim.scenario.readers import READERS, CorpusReader
from fedsim.speech.clips import GROUPS

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def detect(path: str | Path) -> str:
    """Return the kind of corpus that `path` is: a key of `READERS`.

    A folder or a file is what the one entry says that recognizes it. A name that no folder has,
    such as owner/name, is a data set of the hub.

    Raises `FedsimError` if there is nothing at a path, or if no entry or several recognize it.
    """
    place = Path(path)
    if not os.path.lexists(place):
        if _HUB_ID.fullmatch(str(path)):
            return "hub"
        raise FedsimError(f"corpus.path {path} is not a folder or a manifest; check the path")
    readers = {name: READERS[name] for name in READERS}
    found = [name for name, reader in readers.items() if _is(reader, place)]
    if len(found) == 1:
        return found[0]
    if found:
        raise FedsimError(
            f"corpus.path {path} has the signs of several layouts, {' and '.join(found)}; say which"
            f" in corpus.kind, or name the folder of one"
        )
    signs = "; ".join(f"{name}: {r.sign}" for name, r in readers.items() if r.sign)
    raise FedsimError(
        f"corpus {path} has no layout that is known and no metadata.csv; write one with the columns"
        f" file_name and any of text, {', '.join(GROUPS)}, or name the folder that holds one of"
        f" these: {signs}"
    )


def _is(reader: CorpusReader, place: Path) -> bool:
    try:
        return reader.recognizes is not None and bool(reader.recognizes(place))
    except OSError as error:
        raise FedsimError(
            f"corpus.path {place} cannot be read ({(error.strerror or str(error)).lower()}); make"
            f" it readable"
        ) from None
