"""The table of model families in `docs/models.md`, made from their registry.

    python -m fedsim.speech.family_table docs/models.md

writes it between the two markers of that file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fedsim.errors import FedsimError
from fedsim.speech.families import FAMILIES, ModelFamily

BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
_COLUMNS = ("family", "classes", "takes", "tested with", "not supported, and why")


def table() -> str:
    """Return the table in Markdown: one row per family, those of plug-ins included."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    rows += [_row(name, FAMILIES[name]) for name in FAMILIES]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _row(name: str, family: ModelFamily) -> tuple[str, ...]:
    classes = "<br>".join(f"`{one}`" for one in family.classes)
    return name, classes, family.audio, family.tested_with, family.not_supported or "-"


def replaced(text: str, content: str) -> str:
    """Return `text` with `content` between its two markers; raises `FedsimError` without them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise FedsimError(f"the text lacks a marker; write {BEGIN} and {END} around the table")
    return f"{before}{begin}\n{content}\n{end}{after}"


def main(arguments: Sequence[str]) -> int:
    """Write the table into the file that the one argument names."""
    (name,) = arguments
    path = Path(name)
    path.write_text(replaced(path.read_text(encoding="utf-8"), table()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
