"""What is promised and what attacks found: in the report, and in the figure beside the rates."""

import html

import numpy as np
import pytest
from report_toys import scenario, words_study, write_matrix, write_run

from fedsim.audit.record import FILE, Audited, write_audit
from fedsim.errors import FedsimError
from fedsim.privacy.attacks.result import Finding
from fedsim.privacy.bounds import Bounds
from fedsim.report.figure_selection import figures_of
from fedsim.report.leaks import leak_points
from fedsim.report.page import write_report
from fedsim.results.ledger import Ledger
from fedsim.results.records import Log, Release
from fedsim.results.runs import read_runs
from fedsim.scenario.privacy import PrivacySettings
from fedsim.study.privacy_statement import privacy_statement, read_statement, write_statement

BOUNDS = Bounds(np.full(4, 0.5), np.array([1.0, 2.0, 4.0, 8.0]))
PRIVATE = PrivacySettings(release="noisy", epsilon=2.0, delta=1e-5, rounds=3)


def finding(release, attribute, figure, value, low, high, note=""):
    return Finding("attribute", attribute, release, figure, value, low, high, 0.5, 40, note)


def found(release):
    gender = finding(release, "gender", "AUC", 0.75, 0.625, 0.875)
    speaker = finding(release, "the speaker", "rank-1", None, None, None, "needs 20 speakers")
    return Audited({}, release, (gender, speaker), None, ())


@pytest.fixture
def matrix(tmp_path):
    """Two releases of one study, audited, the noisy one with a privacy_statement and its cost."""
    values, noisy = {"release": "values"}, {"release": "noisy", "epsilon": 2.0}
    cells = [(values, words_study()), (noisy, words_study(worse=1))]
    methods = ["fp32", "uniform", "myqasr"]
    chosen = scenario(methods=methods, matrix={"privacy": [values, noisy]})
    path = write_matrix(tmp_path / "run", "privacy", cells, chosen)
    for number, release in enumerate((values, noisy), start=1):
        folder = path / f"cells/00{number}"
        write_audit(folder / FILE, [found(release["release"])])
    made = privacy_statement(PRIVATE, 4, 40, BOUNDS)
    write_statement(path / "cells/002/privacy.json", made)
    with Ledger(path / "cells/002/ledger.sqlite") as ledger:
        sent = [Release(c, "sense", "up", "payload", 16, 2.0) for c in ("ann", "bob")]
        ledger.write(Log(sent))
    return path


def test_a_promise_is_read_as_it_was_written(tmp_path):
    made = privacy_statement(PRIVATE, 4, 40, BOUNDS)
    write_statement(tmp_path / "p.json", made)
    again = read_statement(tmp_path / "p.json")
    assert (again.sentence, again.guarantee) == (made.sentence, made.guarantee)
    assert again.bounds.high.tolist() == [1.0, 2.0, 4.0, 8.0]
    for word in (
        *("ε = 2 at δ = 1e-05", "over 3 of them", "local differential privacy", "all audio of one"),
        *("any other audio in its place", "each of 4 layers is clipped to public bounds"),
        *("analytic Gaussian mechanism", "protects nobody"),
    ):
        assert word in made.sentence
    (tmp_path / "p.json").write_text("[]")
    with pytest.raises(FedsimError, match=r"run the scenario again"):
        read_statement(tmp_path / "p.json")
    assert read_statement(tmp_path / "none") is None


def test_points_are_rates_and_leaks_of_the_planned_model(matrix):
    (run,) = read_runs([matrix])
    table = leak_points(run.parts, "WER")
    assert [row["line"] for row in table] == ["release values", "release noisy, epsilon 2"]
    assert {row["panel"] for row in table} == {"gender, AUC"}  # the other was not measured
    # myqasr, own clips: 2 or 3 of 10 words of each clip; full precision: 3 of 80.
    assert [row["rate"] for row in table] == pytest.approx([20.0, 30.0])
    assert [row["full"] for row in table] == pytest.approx([100 * 3 / 80] * 2)
    assert {(r["leak"], r["leak_low"], r["leak_high"], r["chance"]) for r in table} == {
        (0.75, 0.625, 0.875, 0.5)
    }
    assert leak_points(run.parts, "accuracy") == []


def test_the_figure_has_intervals_chance_and_full_precision(matrix):
    (run,) = read_runs([matrix])
    (figure,) = (f for f in figures_of(run.parts) if f.name == "leak_by_error")
    spec = figure.chart.to_dict()
    marks = [(x["mark"]["type"], sorted(x["encoding"])) for x in spec["spec"]["layer"]]
    assert marks == [
        ("rule", ["y"]),
        ("rule", ["x"]),
        ("rule", ["color", "x", "y", "y2"]),
        ("rule", ["color", "x", "x2", "y"]),
        ("point", ["color", "shape", "tooltip", "x", "y"]),
    ]
    assert spec["title"]["text"] == "Word errors against what releases give away"


def test_the_report_says_promises_findings_and_costs(matrix):
    page = html.unescape(write_report([matrix]).path.read_text())
    assert "What is promised to users" in page
    assert "A release costs ε = 2 at δ = 1e-05" in page
    assert "[0.625, 0.875]" in page
    assert "not measured: needs 20 speakers" in page
    assert "ε each time" in page
    assert "no noise" in page


def test_a_run_that_was_not_audited_has_no_such_figure(tmp_path):
    path = write_run(tmp_path / "run", words_study())
    (run,) = read_runs([path])
    assert "leak_by_error" not in {f.name for f in figures_of(run.parts)}
    page = write_report([path]).path.read_text()
    assert "What is promised" not in page
    assert "What attacks found" not in page
