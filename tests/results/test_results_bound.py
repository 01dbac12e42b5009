"""What a ledger knows of the files beside it: anything else is refused with what differs."""

import json

import pytest
from report_toys import scenario, words_study, write_matrix, write_run
from round_toys import timed, timeline

from fedsim.errors import FedsimError
from fedsim.results.bound import CELL, SETTING, cell_settings, check_settings, seal, settings_of
from fedsim.results.folder import RunFolder, read_results
from fedsim.results.ledger import Ledger
from fedsim.results.ledger_reader import read_ledger
from fedsim.results.runs import read_runs

ROUND = timed([timeline("ann", "watch", 3.0), timeline("bob", "watch", 4.0)])


def bound(folder, settings):
    with Ledger(folder / "ledger.sqlite") as ledger:
        ledger.put_facts({SETTING: settings_of(settings).items()})
    return folder


def test_settings_by_hand():
    settings = settings_of(scenario(seed=7))
    assert settings["seed"] == "7"
    assert settings["model.id"] == '"org/model"'
    assert settings["methods[2].tuned_on[1]"] == '"other"'
    assert settings["engine.threads"] == "1"
    assert not {"name", "save_models", "engine.kind", "engine.workers"} & settings.keys()


def test_a_report_of_another_scenario_is_refused(tmp_path):
    run = bound(write_run(tmp_path / "run", words_study()), scenario())
    assert read_runs([run])
    text = (run / "scenario.yaml").read_text()
    (run / "scenario.yaml").write_text("# a remark\n" + text.replace("name: toy", "name: other"))
    assert read_runs([run])[0].name == "other"
    (run / "scenario.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    with pytest.raises(FedsimError, match=r"scenario\.yaml: .*\(seed was 0 and is 1\): restore it"):
        read_runs([run])


def test_many_differences_are_counted(tmp_path):
    run = bound(write_run(tmp_path / "run", words_study()), scenario())
    other = scenario(seed=1, study=False, methods=["uniform"], clients={"budget_mb": 1.0})
    with read_ledger(run / "ledger.sqlite") as ledger, pytest.raises(FedsimError) as caught:
        check_settings(ledger, run, other)
    assert "seed was 0 and is 1; " in str(caught.value)
    assert "; and " in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.fixture
def sealed(tmp_path):
    run = write_run(tmp_path / "run", words_study(), timed=ROUND)
    (run / "timing.json").write_text('{"seconds": 1.5, "clients": 2}')
    seal(RunFolder(run))
    return run


@pytest.mark.parametrize(
    "name", ["timeline.parquet", "results.parquet", "layers.json", "timing.json"]
)
def test_a_file_that_was_changed_after_the_run(sealed, name):
    assert read_runs([sealed])
    content = bytearray((sealed / name).read_bytes())
    content[len(content) // 2] ^= 4
    (sealed / name).write_bytes(content)
    with pytest.raises(FedsimError, match=rf"{name}: the file is damaged, or was changed after"):
        read_runs([sealed])
    (sealed / name).unlink()
    assert read_runs([sealed])


WRONG = [
    ("layers.json", "{}"),
    ("layers.json", '[{"name": 1, "kind": "linear", "weights": 2}]'),
    ("layers.json", '[{"name": "a", "kind": "linear", "weights": "2"}]'),
    ("layers.json", '[{"name": "a", "kind": "linear", "weights": -2}]'),
    ("layers.json", "[" * 100_000),
    ("layers.json", "[]".encode("utf-16")),
    ("timing.json", "[]"),
    ("timing.json", '{"seconds": "much"}'),
    ("timing.json", '{"seconds": NaN}'),
    ("timing.json", '{"seconds": 1e999}'),
    ("timing.json", '{"clients": -1}'),
    ("timing.json", '{"clients": ' + "9" * 5000 + "}"),
    ("versions.json", '{"torch": 2}'),
    ("versions.json", '["torch"]'),
    ("scenario.yaml", "name: toy".encode("utf-16")),
    ("scenario.yaml", "- a list"),
    ("timeline.parquet", b"PAR1" + bytes(100) + b"PAR1"),
]


@pytest.mark.parametrize(("name", "content"), WRONG)
def test_a_wrong_file_is_one_sentence(tmp_path, name, content):
    """Also one of a run that was killed, whose files have no hash."""
    run = write_run(tmp_path / "run", words_study(), timed=ROUND)
    (run / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(FedsimError) as caught:
        read_runs([run])
    assert str(caught.value).startswith(str(run / name))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"text" * 100])
def test_results_that_are_none(tmp_path, content):
    (tmp_path / "results.parquet").write_bytes(content)
    with pytest.raises(FedsimError, match=r"results\.parquet: these are not results"):
        read_results(tmp_path / "results.parquet")


def test_the_combinations_of_a_matrix_keep_their_names(tmp_path):
    cells = [(30.0, words_study(30.0)), (40.0, words_study())]
    path = write_matrix(tmp_path / "run", "clients.budget_mb", cells)
    for number, (value, _) in enumerate(cells, start=1):
        with Ledger(path / f"cells/{number:03d}/ledger.sqlite") as ledger:
            ledger.put_facts({CELL: cell_settings({"clients.budget_mb": value}).items()})
    assert len(read_runs([path])[0].parts) == 2
    index = json.loads((path / "matrix.json").read_text())
    index[0]["settings"], index[1]["settings"] = index[1]["settings"], index[0]["settings"]
    (path / "matrix.json").write_text(json.dumps(index))
    with pytest.raises(FedsimError, match=r"the combination clients\.budget_mb 30\.0, and matrix"):
        read_runs([path])
    for wrong in (
        "{}",
        '[{"folder": "../..", "settings": {}}]',
        '[{"folder": "cells/001"}]',
        "[1]",
    ):
        (path / "matrix.json").write_text(wrong)
        with pytest.raises(FedsimError, match=r"matrix\.json: the file is damaged"):
            read_runs([path])
