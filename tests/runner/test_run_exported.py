"""Studies of exported files: their sizes are planned, and they are tested in their runtime."""

from __future__ import annotations

import sys

import pytest
import toys
import vocabulary_toys
from fedsim_clients.saving import model_name

from fedsim.base.units import MB
from fedsim.errors import FedsimError
from fedsim.results.folder import read_results
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return toys.write_corpus(folder / "clips", speakers=("ann", "bob"), languages=("en", "it"))


@pytest.fixture
def sections(corpus, model_folder):
    return {
        "model": {"id": str(model_folder("ctc-layer"))},
        "corpus": {
            "path": str(corpus),
            "group_by": "speaker",
            "tuning_clips": 2,
            "test_clips": 3,
        },
        "clients": {"budget_mb": [0.0335, 0.0385], "format": "onnx"},
        "quantization": {"rounding": "nearest", "weights": {"group": 32}},
    }


@pytest.mark.parametrize(
    ("name", "format_name", "budgets"),
    [
        ("ctc-layer", "onnx", [0.0335, 0.0385]),
        ("whisper", "onnx", [0.105, 0.109]),
        pytest.param("ctc-layer", "openvino", [0.139, 0.148], marks=pytest.mark.slow),
        pytest.param("whisper", "openvino", [0.242, 0.258], marks=pytest.mark.slow),
    ],
)
def test_what_ships_is_planned_kept_and_tested(
    sections, model_folder, tmp_path, name, format_name, budgets
):
    pytest.importorskip(format_name, reason=f"the extra {format_name} is not installed")
    sections = {
        **sections,
        "model": {"id": str(model_folder(name))},
        "clients": {"budget_mb": budgets, "format": format_name},
    }
    scenario = load_scenario(
        toys.write_scenario(
            tmp_path / "toy.yaml",
            **sections,
            methods=[
                "fp32",
                {
                    "allocation": "myqasr",
                    "calibration": ["float", "dynamic"],
                    "runtime": ["emulated", format_name, f"{format_name}_float"],
                },
            ],
            save_models=True,
        )
    )
    result = run_scenario(scenario, tmp_path / "run")
    assert result.failures == []
    rows = {(row.client, row.method): row for row in read_results(result.folder.results)}
    assert {method for _, method in rows} == {
        *("fp32", "myqasr/float", "myqasr/dynamic"),
        *(f"myqasr/{format_name}", f"myqasr/{format_name}_float"),
    }
    sizes = set()
    for (client, method), row in rows.items():
        if method == "fp32":
            assert (row.format, row.runtime) == ("-", "-")
            continue
        assert row.format == format_name
        inputs = method.partition("/")[2]
        emulated = inputs in ("float", "dynamic")
        assert row.runtime == ("emulated" if emulated else inputs)
        assert row.calibration == (inputs if emulated else "-")
        file = result.folder.models / model_name(client, method)
        shipped = file.with_name(f"{file.stem}-{format_name}")
        assert row.file_bytes == sum(part.stat().st_size for part in shipped.iterdir())
        assert row.file_bytes <= row.budget_bytes
        sizes.add((client, row.file_bytes, row.plan_sha256))
    assert len(sizes) == 2  # one plan for each client, whatever tests it
    for client in ("ann", "bob"):  # with inputs in float32 both compute the same
        counted = [rows[client, f"myqasr/{how}"] for how in ("float", f"{format_name}_float")]
        assert counted[0].chars
        assert counts_of(counted[0]) == counts_of(counted[1])


@pytest.mark.parametrize(
    ("format_name", "budget"),
    [("onnx", 0.1), pytest.param("openvino", 0.27, marks=pytest.mark.slow)],
)
def test_tokens_that_devices_choose_change_no_size(tmp_path, format_name, budget):
    """Two clients with one plan: their own tokens differ, the bytes of their files do not."""
    pytest.importorskip(format_name, reason=f"the extra {format_name} is not installed")
    model = vocabulary_toys.save(tmp_path / "whisper", seed=1)
    (tmp_path / "words.txt").write_text("casa")
    toys.write_corpus(tmp_path / "clips", ["ann", "bob", "cem"], each=4, languages=["it"])
    runtimes = ["emulated", f"{format_name}_float"]
    method = {"allocation": "uniform", "calibration": "float", "runtime": runtimes}
    file = toys.write_scenario(
        tmp_path / "toy.yaml",
        model={"id": str(model), "vocabulary": {"words": 1, "own": 2, "words_from": "words.txt"}},
        corpus={"path": "clips", "group_by": "speaker", "tuning_clips": 2, "test_clips": 2},
        clients={"budget_mb": budget, "format": format_name},
        quantization={"rounding": "nearest", "weights": {"group": 32}},
        methods=[method],
        save_models=True,
    )
    result = run_scenario(load_scenario(file), tmp_path / "run")
    assert result.failures == []
    rows = {(row.client, row.method): row for row in read_results(result.folder.results)}
    sizes, vocabularies = set(), set()
    for (client, method), row in rows.items():
        kept = result.folder.models / model_name(client, method)
        shipped = kept.with_name(f"{kept.stem}-{format_name}")
        assert row.file_bytes == sum(part.stat().st_size for part in shipped.iterdir())
        assert row.file_bytes <= row.budget_bytes
        sizes.add((row.file_bytes, row.plan_sha256))
        vocabularies.add((shipped / "vocab.json").read_bytes())
    assert len(sizes) == 1
    assert len(vocabularies) > 1
    for client in ("ann", "bob", "cem"):
        counted = [rows[client, f"uniform/{how}"] for how in ("float", f"{format_name}_float")]
        assert counted[0].chars
        assert counts_of(counted[0]) == counts_of(counted[1])


def counts_of(row):
    return row.errors, row.words, row.char_errors, row.chars, row.looped


@pytest.mark.slow
def test_a_table_of_exported_files_is_one_on_all_engines(sections, tmp_path):
    methods = [{"allocation": "myqasr", "runtime": ["onnx", "emulated"]}]
    tables = []
    for kind, workers in (("inprocess", None), ("ray", 2)):
        engine = {"kind": kind} | ({"workers": workers} if workers else {})
        file = toys.write_scenario(
            tmp_path / f"{kind}.yaml", **sections, methods=methods, engine=engine
        )
        result = run_scenario(load_scenario(file), tmp_path / kind)
        assert result.failures == []
        tables.append(result.folder.results.read_bytes())
    assert tables[0] == tables[1]


def test_what_a_format_cannot_hold_shows_before_a_run(sections, model_folder, tmp_path):
    """In the words of the format, where no client has failed yet."""
    classifier = {**sections, "model": {"id": str(model_folder("classifier"))}}
    file = toys.write_scenario(tmp_path / "toy.yaml", **classifier, methods=["uniform"])
    with pytest.raises(FedsimError, match="can be exported to onnx"):
        run_scenario(load_scenario(file), tmp_path / "run")


def test_a_budget_is_for_the_graph_too(sections, tmp_path):
    """fedsim's own file fits into bytes that the graph alone would fill."""
    fits = {}
    for name in ("fedsim", "onnx"):
        small = {**sections, "clients": {"budget_mb": 20_000 / MB, "format": name}}
        file = toys.write_scenario(tmp_path / "toy.yaml", **small, methods=["uniform"])
        result = run_scenario(load_scenario(file), tmp_path / name)
        fits[name] = {row.client for row in result.rows}
        reasons = [failure.reason for failure in result.failures]
    assert fits == {"fedsim": {"ann", "bob"}, "onnx": set()}
    assert all("below the smallest feasible model file" in reason for reason in reasons)


def test_a_package_that_is_missing_shows_before_a_run(sections, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    file = toys.write_scenario(tmp_path / "toy.yaml", **sections, methods=["uniform"])
    message = r"needs the package onnxscript, .*: pip install 'fedsim-speech\[onnx\]'"
    with pytest.raises(FedsimError, match=message):
        run_scenario(load_scenario(file), tmp_path / "run")
