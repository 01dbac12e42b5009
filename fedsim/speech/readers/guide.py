"""The table of layouts in docs/recordings.md, made of the registry.

`python -m fedsim.speech.readers.guide` writes it into the guide anew.
"""

from __future__ import annotations

from pathlib import Path

from fedsim.scenario.readers import READERS

BEGIN, END = "<!-- layouts: begin -->", "<!-- layouts: end -->"
_HEADER = (
    "kind",
    "corpus",
    "recognized by",
    "what is read",
    "`corpus.split`",
    "tested with",
    "not supported",
)


def layouts_table() -> str:
    """Return the table of all kinds of corpus that fedsim brings, as Markdown."""
    lines = [_row(*_HEADER), _row(*["---"] * len(_HEADER))]
    for name in READERS:
        reader = READERS[name]
        if reader.recognizes is not None and reader.tested:  # not those of other packages
            cells = (reader.summary, reader.sign, reader.fields, reader.splits)
            lines.append(_row(f"`{name}`", *cells, reader.tested, reader.unsupported))
    return "\n".join(lines)


def with_table(guide: str) -> str:
    """Return the guide with the table between its marks."""
    before, _, rest = guide.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{layouts_table()}\n{END}{after}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    file = Path("docs/recordings.md")
    file.write_text(with_table(file.read_text(encoding="utf-8")), encoding="utf-8")
