"""The notebooks: their code runs from top to bottom, and their outputs are small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

BOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
MAX_BYTES = 20_000


def code_cells(book: Path) -> list[dict]:
    cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_three():
    assert [book.stem for book in BOOKS] == ["fleet", "leaks", "one_user"]


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_outputs_are_small_and_from_one_run(book):
    assert book.stat().st_size < MAX_BYTES
    cells = code_cells(book)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert all(output["output_type"] != "error" for output in cell["outputs"])
        assert cell["outputs"] or cell is cells[0]


@pytest.mark.slow
@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_the_code_runs(book, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in code_cells(book):
        exec(compile("".join(cell["source"]), book.name, "exec"), names)
