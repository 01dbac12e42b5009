"""Scenarios of files that ship: their bit depths, and the runtimes that test them."""

from __future__ import annotations

import pytest
import yaml

from fedsim.errors import FedsimError
from fedsim.scenario import load_scenario
from fedsim.scenario.cells import all_cells
from fedsim.scenario.matrix import expand
from fedsim.scenario.schema import scenario_from_json

RUNTIMES = ["emulated", "onnx", "onnx_float"]


def load(folder, **sections):
    document = {
        "name": "toy",
        "model": {"id": "org/model"},
        "corpus": {"path": "org/clips", "group_by": "speaker"},
        "clients": {"budget_mb": 30, "format": "onnx"},
        "methods": ["myqasr"],
        **sections,
    }
    (folder / "s.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return load_scenario(folder / "s.yaml")


def test_bit_depths_are_those_of_the_format(tmp_path):
    assert load(tmp_path).clients.bit_depths == (2, 4, 6, 8)
    some = load(tmp_path, clients={"budget_mb": 30, "format": "onnx", "bit_depths": [8, 4]})
    assert some.clients.bit_depths == (4, 8)
    own = load(tmp_path, clients={"budget_mb": 30})
    assert own.clients.bit_depths == tuple(range(2, 17))


def test_a_matrix_of_formats(tmp_path):
    found = expand(load(tmp_path, matrix={"clients.format": ["onnx", "fedsim"]}))
    assert [len(cell.scenario.clients.bit_depths) for cell in found] == [4, 15]


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"clients": {"budget_mb": 30, "format": "onnx", "bit_depths": [4, 5]}},
            "s.yaml:12: clients.bit_depths.1: onnx stores 2, 4, 6, 8 bits, not 5: remove it",
        ),
        (
            {"clients": {"budget_mb": 30, "format": "onxx"}},
            "s.yaml:9: clients.format: there is no export format 'onxx': did you mean 'onnx'?",
        ),
        (
            {
                "clients": {"budget_mb": 30},
                "methods": [{"allocation": "myqasr", "runtime": "onnx"}],
            },
            "s.yaml:11: methods.0.runtime: onnx runs files of another format: set clients.format:"
            " onnx",
        ),
        (
            {"methods": [{"allocation": "myqasr", "runtime": "onnx", "calibration": "dynamic"}]},
            "s.yaml:13: methods.0.calibration: onnx quantizes inputs its own way: remove it, or"
            " add emulated to runtime",
        ),
        (
            {"methods": [{"allocation": "fp32", "runtime": "onnx"}, "myqasr"]},
            "s.yaml:12: methods.0.runtime: fp32 is not tuned and takes no runtime: remove it",
        ),
        (
            {"methods": [{"allocation": "myqasr", "runtime": []}]},
            "s.yaml:12: methods.0.runtime: the list is empty: name at least one, or remove the key",
        ),
        (
            {"methods": [{"allocation": "myqasr", "runtime": ["onnx"] * 2}]},
            "s.yaml:14: methods.0.runtime.1: 'onnx' is listed twice: remove one",
        ),
        (
            {"methods": ["myqasr", {"allocation": "myqasr", "runtime": RUNTIMES}]},
            "s.yaml:12: methods.1: repeats methods.0 (myqasr/dynamic, compensated with blend"
            " moments, tuned on own, descending): remove one",
        ),
    ],
)
def test_mistakes(tmp_path, sections, line):
    with pytest.raises(FedsimError) as caught:
        load(tmp_path, **sections)
    assert str(caught.value).replace(f"{tmp_path}/", "") == line


def test_a_method_has_a_cell_for_each_runtime(tmp_path):
    method = {"allocation": "myqasr", "calibration": ["minmax", "float"], "runtime": RUNTIMES}
    found = load(tmp_path, methods=[method])
    assert [(cell.label, cell.calibration, cell.runtime) for cell in all_cells(found)] == [
        ("myqasr/minmax", "minmax", "emulated"),
        ("myqasr/float", "float", "emulated"),
        ("myqasr/onnx", "float", "onnx"),
        ("myqasr/onnx_float", "float", "onnx_float"),
    ]
    assert found.methods[0].n_models == 4


@pytest.mark.parametrize("runtime", ["onnx", RUNTIMES])
def test_a_scenario_reads_back_from_what_it_writes(tmp_path, runtime):
    found = load(tmp_path, methods=["fp32", {"allocation": "myqasr", "runtime": runtime}])
    assert scenario_from_json(found.model_dump_json()) == found
    (tmp_path / "again.yaml").write_text(found.to_yaml())
    assert load_scenario(tmp_path / "again.yaml") == found
