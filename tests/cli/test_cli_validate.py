"""`fedsim validate`: a scenario checked without a run."""

from __future__ import annotations

import json

from fedsim.cli import main
from fedsim.quant.allocation import ALLOCATORS
from fedsim.quant.measures import MEASURES


def test_validate_lists_clients_clips_and_budgets(capsys):
    assert main(["validate", "small.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[2:4]] == [
        ["ann", "3", "2", "30.0"],
        ["bob", "1", "2", "40.5"],
    ]
    assert lines[-1] == "ok: small: 2 clients, 1 method"


def test_validate_warns_of_a_client_that_will_fail(capsys):
    assert main(["validate", "small.yaml", "--set", "corpus.test_clips=3"]) == 0
    assert "this client will fail: client 'bob' has no tuning clips" in capsys.readouterr().out


def test_validate_finds_what_only_the_corpus_shows(capsys):
    method = "methods=[{allocation: myqasr, tuned_on: an}]"
    assert main(["validate", "small.yaml", "--set", method]) == 1
    assert "'an' is not a client of this corpus: did you mean 'ann'?" in capsys.readouterr().err
    assert main(["validate", "small.yaml", "--set", "clients.budget_mb={ann: 3}"]) == 1
    assert "client 'bob' has no budget" in capsys.readouterr().err
    assert main(["validate", "small.yaml", "--set", "model.id=./none"]) == 1
    assert "model.id: there is no " in capsys.readouterr().err


def test_every_line_of_an_error_is_marked(capsys):
    assert main(["validate", "broken.yaml", "--set", "sed=3"]) == 1
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2  # unknown budgt_mb, unknown sed
    assert all(line.startswith("error: ") for line in err)


def test_schema_needs_no_scenario_and_lists_the_names(capsys):
    assert main(["validate", "--schema"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["title"] == "Scenario"
    for name in ("fp32", "auto", *ALLOCATORS, *MEASURES):
        assert f'"{name}"' in out
    assert main(["validate"]) == 2
    assert "give a SCENARIO, or --schema" in capsys.readouterr().err
