"""The run folder, and the Parquet file against a reader of its own."""

import hashlib
import json
import random
from dataclasses import fields, replace
from pathlib import Path

import paper
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedsim.errors import FedsimError
from fedsim.results.folder import (
    create_run,
    new_run_path,
    read_results,
    write_results,
)
from fedsim.results.rows import COLUMNS, Row, arrow_schema
from fedsim.scenario import Scenario, load_scenario

SCENARIO = Scenario.model_validate(
    {
        "name": "voices",
        "model": {"id": "org/model"},
        "corpus": {"path": "org/data", "group_by": "speaker"},
        "clients": {"budget_mb": 40},
        "quantization": paper.QUANTIZATION,
        "methods": ["fp32", "uniform"],
    }
)
ROW = Row(
    *(
        "en",
        "uniform/cosine",
        "uniform",
        "cosine",
        "nearest",
        "-",
        "en",
        40 * 2**20,
        41_000_000,
        5.25,
        40,
    ),
    *(12, 96, 0.125, 30, 400, 0.075, None, None, "ab" * 32),
)


def test_arrow_schema_by_hand():
    schema = arrow_schema()
    assert schema.names == [field.name for field in fields(Row)]
    assert schema.field("client") == pa.field("client", pa.string(), nullable=False)
    assert schema.field("file_bytes") == pa.field("file_bytes", pa.int64(), nullable=False)
    assert schema.field("wer") == pa.field("wer", pa.float64(), nullable=True)
    assert schema.field("correct") == pa.field("correct", pa.int64(), nullable=True)
    optional = {column.name for column in COLUMNS if column.optional}
    rates = {"errors", "words", "wer", "char_errors", "chars", "cer", "correct", "accuracy"}
    loops = {"looped", "looped_errors", "looped_words", "rate_without_loops"}
    rare = {"rare_beyond", "rare_errors", "rare_words", "rare_rate"}
    assert optional == rates | {"low", "high"} | loops | rare


def test_the_folder_below_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = create_run(None, SCENARIO)
    assert folder.path.parent == tmp_path / "runs" / "voices"
    assert len(folder.path.name) == len("20250131T235959Z")
    assert load_scenario(folder.scenario) == SCENARIO
    versions = json.loads(folder.versions.read_text())
    assert versions["python"].startswith("3.")
    assert {"fedsim", "platform", "flwr", "ray", "torch", "pyarrow"} <= set(versions)
    assert not folder.models.exists()
    assert (folder.ledger.name, folder.results.name) == ("ledger.sqlite", "results.parquet")


def test_two_runs_in_one_second_have_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len({new_run_path("voices") for _ in range(5)}) == 5


def test_out_is_taken_exactly_and_must_be_empty(tmp_path):
    out = tmp_path / "a" / "b"
    saving = SCENARIO.model_copy(update={"save_models": True})
    assert create_run(out, saving).path == out
    assert (out / "models").is_dir()
    with pytest.raises(FedsimError, match="name an empty or new one"):
        create_run(out, SCENARIO)
    (tmp_path / "empty").mkdir()
    assert create_run(tmp_path / "empty", SCENARIO).path == tmp_path / "empty"
    (tmp_path / "file").write_text("")
    with pytest.raises(FedsimError, match="name an empty or new folder"):
        create_run(tmp_path / "file", SCENARIO)
    with pytest.raises(FedsimError, match="name another --out folder"):
        create_run(tmp_path / "file" / "below", SCENARIO)


def test_a_file_where_runs_should_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").write_text("")
    with pytest.raises(FedsimError, match="runs"):
        create_run(None, SCENARIO)


def test_results_come_back_sorted_whatever_order_they_came_in(tmp_path):
    folder = create_run(tmp_path / "run", SCENARIO)
    rows = [replace(ROW, client=c, tuned_on=t) for c in ("de", "en", "é") for t in ("", "x")]
    shuffled = random.Random(1).sample(rows, len(rows))
    write_results(folder, shuffled, SCENARIO)
    assert read_results(folder.results) == rows
    table = pq.read_table(folder.results)
    assert table.column("wer").to_pylist() == [0.125] * 6
    metadata = table.schema.metadata
    assert metadata[b"fedsim.scenario"] == b"voices"
    assert json.loads(metadata[b"fedsim.scenario_json"])["clients"]["budget_mb"] == 40.0


def test_equal_results_make_equal_bytes_whatever_the_engine(tmp_path):
    rows = [replace(ROW, client=f"c{i}") for i in range(50)]
    digests = set()
    for i, kind in enumerate(["ray", "inprocess"]):
        engine = SCENARIO.engine.model_copy(update={"kind": kind, "workers": i + 1})
        scenario = SCENARIO.model_copy(update={"engine": engine})
        folder = create_run(tmp_path / kind, scenario)
        write_results(folder, rows[::-1] if i else rows, scenario)
        digests.add(hashlib.sha256(folder.results.read_bytes()).hexdigest())
        assert sorted(p.name for p in folder.path.iterdir()) == [
            "results.parquet",
            "scenario.yaml",
            "versions.json",
        ]
    assert len(digests) == 1


def test_no_rows_make_an_empty_table(tmp_path):
    folder = create_run(tmp_path / "run", SCENARIO)
    write_results(folder, [], SCENARIO)
    assert read_results(folder.results) == []
    assert pq.read_table(folder.results).schema.equals(arrow_schema())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    folder = create_run(tmp_path / "run", SCENARIO)
    write_results(folder, [ROW], SCENARIO)

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(FedsimError, match="no space left on device"):
        write_results(folder, [ROW, replace(ROW, client="de")], SCENARIO)
    assert read_results(folder.results) == [ROW]
