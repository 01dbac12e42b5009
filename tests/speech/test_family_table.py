"""The table in docs/models.md is the registry's."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsim.errors import FedsimError
from fedsim.speech.families import FAMILIES
from fedsim.speech.family_table import BEGIN, END, main, replaced, table

DOCS = Path(__file__).parents[2] / "docs/models.md"


def test_the_guide_has_the_table_of_the_registry():
    text = DOCS.read_text(encoding="utf-8")
    between = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert between == table()  # else run: python -m fedsim.speech.family_table docs/models.md


def test_every_family_says_what_it_takes_and_was_tested_with():
    rows = table().splitlines()[2:]
    assert len(rows) == len(list(FAMILIES))
    for name, row in zip(FAMILIES, rows, strict=True):
        assert FAMILIES[name].audio
        assert FAMILIES[name].tested_with
        assert row.startswith(f"| {name} |")
        assert all(f"`{one}`" in row for one in FAMILIES[name].classes)
        assert row.count("|") == 6


def test_the_table_is_written_between_its_markers(tmp_path):
    path = tmp_path / "guide.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main([str(path)]) == 0
    assert path.read_text() == f"before\n{BEGIN}\n{table()}\n{END}\nafter\n"
    with pytest.raises(FedsimError, match="lacks a marker"):
        replaced(f"text {END}", "x")
