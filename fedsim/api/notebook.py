"""What a notebook shows of a result."""

from __future__ import annotations

from html import escape

from fedsim.report.cells import HtmlTable


def plain_table(table: HtmlTable) -> str:
    """Return a table as HTML without style or scripts, for a notebook to style."""
    align = ["right" if numeric else "left" for numeric in table.numeric]

    def row(kind: str, texts: list[str]) -> str:
        cells = (
            f'<{kind} style="text-align: {side}">{escape(text)}</{kind}>'
            for text, side in zip(texts, align, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(row("td", [cell.text for cell in cells]) for cells in table.rows)
    head = row("th", list(table.heads))
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
