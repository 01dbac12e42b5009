"""The examples in the docstrings of the public names are true."""

from __future__ import annotations

import doctest

import pytest

import fedsim


@pytest.mark.parametrize("name", [n for n in fedsim.__all__ if n != "__version__"])
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    for example in doctest.DocTestFinder(exclude_empty=True).find(getattr(fedsim, name), name):
        lines: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        assert not runner.run(example, out=lines.append).failed, "".join(lines)


def test_there_are_examples():
    found = doctest.DocTestFinder().find(fedsim.load_study) + doctest.DocTestFinder().find(
        fedsim.run
    )
    assert sum(len(test.examples) for test in found) >= 5
