"""Which versions `benchmarks.dependencies` takes for the lowest; the script needs an index."""

from __future__ import annotations

import tomllib
from pathlib import Path

from benchmarks.dependencies import EXTRAS, lower_bounds

PROJECT = {
    "dependencies": ["torch>=2.6,<2.14", "pyyaml", "flwr>=1.41,<1.42"],
    "optional-dependencies": {
        "dev": ["av>=14", "mkdocstrings[python]>=0.30,<2"],
        "other": ["x>=1"],
    },
}


def test_the_lowest_of_each_range_and_of_the_named_extras():
    assert lower_bounds(PROJECT, ["dev"]) == [
        "av==14.*",
        "flwr==1.41.*",
        "mkdocstrings==0.30.*",
        "torch==2.6.*",
    ]


def test_each_dependency_of_fedsim_has_a_lower_bound():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    names = {bound.partition("==")[0] for bound in lower_bounds(project, EXTRAS)}
    assert {line.partition(">=")[0] for line in project["dependencies"]} <= names
