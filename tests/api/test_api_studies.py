"""Studies from Python: settings in, a result out, the same as the command's."""

from __future__ import annotations

import json
import sys

import pytest
from report_toys import WORDS, clips_study, model, scenario, words_study, write_matrix, write_run

import fedsim
from fedsim.api.notebook import plain_table
from fedsim.report.cells import Cell, table_of
from fedsim.report.page import write_report
from fedsim.scenario import load_scenario


def records(table):
    """The rows of a table, whether pandas is installed or not."""
    return table if isinstance(table, list) else table.to_dict("records")


@pytest.fixture
def two(tmp_path):
    """The result of a study of two speakers, myqasr better than uniform on every clip."""
    return fedsim.open_run(write_run(tmp_path / "run", words_study()))


def test_every_public_name_is_there_and_documented():
    for name in fedsim.__all__:
        assert name == "__version__" or getattr(fedsim, name).__doc__
    assert len(fedsim.__all__) <= 16
    with pytest.raises(AttributeError, match="'frob'"):
        fedsim.frob  # noqa: B018


def test_settings_replace_keys_as_set_does(tmp_path):
    file = tmp_path / "toy.yaml"
    file.write_text(scenario().to_yaml())
    loaded = fedsim.load_study(
        file,
        clients__budget_mb=(1.5, 2),
        methods__1__calibration=["minmax"],
        quantization__zero_points=False,
        retries={"attempts": 2},
        description='quotes " and: é',
    )
    words = [
        *("clients.budget_mb=[1.5,2]", "methods.1.calibration=[minmax]"),
        *("quantization.zero_points=false", "retries={attempts: 2}"),
        "description='quotes \" and: é'",
    ]
    assert loaded == load_scenario(file, words)
    with pytest.raises(fedsim.FedsimError, match=r"clients\.budgt_mb.*did you mean"):
        fedsim.load_study(file, clients__budgt_mb=3)
    with pytest.raises(fedsim.FedsimError, match="a value of type object"):
        fedsim.load_study(file, seed=object())


def test_the_table_by_hand(two):
    full, uniform, own, other = records(two.table)
    assert (full["method"], full["tuned_on"], full["mb_min"], full["metric"]) == (
        *("fp32", "-", 275.0, "WER"),
    )
    assert full["percent"] == pytest.approx(100 * 3 / 80)
    assert (uniform["percent"], uniform["mb_max"], uniform["bits_min"]) == (60.0, 38.5, 5.0)
    assert (own["method"], own["tuned_on"], own["clients"]) == ("myqasr/cosine", "own", 2)
    assert own["low"] <= own["percent"] <= own["high"]
    assert other["tuned_on"] == "other"
    assert len(records(two.rows)) == 8


def test_without_pandas_a_table_is_a_list(two, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert [line["method"] for line in two.table] == [
        *("fp32", "uniform/cosine", "myqasr/cosine", "myqasr/cosine"),
    ]


def test_comparisons(two):
    found = two.compare("myqasr", "uniform")
    assert (found.difference, found.low, found.high) == pytest.approx((-40, -40, -40))
    assert (found.verdict, found.metric, found.more_clips) == ("better", "WER", None)
    assert found.sentence == str(found)
    assert "myqasr/cosine" in found.sentence
    back = two.compare("uniform/cosine", "myqasr/cosine")
    assert (back.difference, back.verdict) == (pytest.approx(40), "worse")
    for wrong in ("qasr", "myqas", ""):
        with pytest.raises(fedsim.FedsimError, match="name one of fp32"):
            two.compare(wrong, "uniform")


def test_own_and_others_clips_are_told_apart_by_their_names(tmp_path):
    """24 errors in 80 words with own models; 11 and 9 with the other's."""
    result = fedsim.open_run(write_run(tmp_path / "run", words_study(worse=1)))
    found = result.compare("myqasr", "myqasr/cosine, others' clips")
    assert found.difference == pytest.approx(100 * (24 - 20) / 80)
    assert found.second == "myqasr/cosine, others' clips"


def test_a_name_means_the_method_that_the_others_continue(tmp_path):
    def client(*methods):
        return [model("a", method, "a", [1, 2, 3, 4], WORDS) for method in methods]

    run = write_run(tmp_path / "1", client("knapsack/dynamic/public", "knapsack/dynamic"))
    assert fedsim.open_run(run).compare("knapsack", "knapsack/dynamic/public").first == (
        "knapsack/dynamic, own clips"
    )
    run = write_run(tmp_path / "2", client("knapsack/cosine", "knapsack/minmax"))
    with pytest.raises(fedsim.FedsimError, match="'knapsack' names several methods"):
        fedsim.open_run(run).compare("knapsack", "knapsack/minmax")


def test_accuracy_is_better_where_it_is_higher(tmp_path):
    result = fedsim.open_run(write_run(tmp_path / "run", clips_study()))
    found = result.compare("myqasr", "uniform")
    assert (found.metric, found.verdict) == ("accuracy", "better")
    assert found.difference > 0


def test_a_combination_of_a_matrix_is_named_by_its_settings(tmp_path):
    cells = [(30.0, words_study(30.0, 29.5)), (40.0, words_study(40.0, 39.5, worse=1))]
    result = fedsim.open_run(write_matrix(tmp_path / "run", "clients.budget_mb", cells))
    assert [line["clients.budget_mb"] for line in records(result.table)][::4] == [30.0, 40.0]
    assert result.compare("myqasr", "fp32", budget_mb=30).difference < (
        result.compare("myqasr", "fp32", clients__budget_mb=40).difference
    )
    for settings in ({}, {"budget_mb": 50}, {"seed": 1}):
        with pytest.raises(fedsim.FedsimError, match="name one of 30 MB; 40 MB"):
            result.compare("myqasr", "fp32", **settings)


def test_without_counts_of_clips_methods_cannot_be_compared(tmp_path):
    models = [
        model("a", method, "a", [1, 2], [5, 5], study=False) for method in ("fp32", "uniform")
    ]
    result = fedsim.open_run(write_run(tmp_path / "run", models))
    with pytest.raises(fedsim.FedsimError, match="set study: true"):
        result.compare("fp32", "uniform")
    assert result.finding.startswith("The compressed model: WER 30.0 %")


def test_the_finding_is_the_first_that_is_decided_in_everyday_words(two, tmp_path):
    """Own and others' clips cannot be told apart there; a depth per layer beats one for all."""
    assert two.finding == (
        "Of 100 words, myqasr/cosine makes 40.0 fewer errors than uniform/cosine"
        " (95 % interval 40.0 to 40.0)."
    )
    models = [
        model("a", method, "a", [1, 0, 1, 0]) for method in ("uniform/cosine", "myqasr/cosine")
    ]
    undecided = fedsim.open_run(write_run(tmp_path / "same", models)).finding
    assert "cannot be told apart" in undecided


def test_figures_and_report_are_the_commands(two, tmp_path):
    assert set(two.figures) >= {"error_by_method", "bits_by_layer"}
    assert all("$schema" in chart.to_dict() for chart in two.figures.values())
    assert two.report() == two.folder / "report.html"
    again = write_report([two.folder], tmp_path / "again.html").path
    assert (two.folder / "report.html").read_text() == again.read_text()
    two.report(tmp_path / "named.html", figures=tmp_path / "figures")
    assert (tmp_path / "figures/error_by_method.svg").is_file()


def test_what_a_notebook_shows(tmp_path):
    """A row for each method, names escaped; the report is linked where it is."""
    two = [model("a", m, "a", [1, 2], [5, 5]) for m in ("uniform/cosine", "myqasr/cosine")]
    result = fedsim.open_run(write_run(tmp_path / "run", two))
    assert result.study._repr_html_().startswith("<pre>name: toy\n")
    page = result._repr_html_()
    assert page.count("<tr>") == 3
    assert ">myqasr/cosine</td>" in page
    assert "report.html" not in page
    result.report()
    assert f'href="file://{tmp_path}/run/report.html"' in result._repr_html_()
    assert plain_table(table_of(["<i>"], [[Cell("<b>")]])).count("&lt;") == 2


@pytest.mark.slow
def test_a_run_is_the_commands_run(study, tmp_path):
    """Table for table and byte for byte; the same folder opened again gives the same."""
    loaded = fedsim.load_study(study.file, engine__kind="inprocess")
    result = fedsim.run(loaded, tmp_path / "run", report=False, progress=False)
    assert (result.folder / "results.parquet").read_bytes() == (
        study.result.folder.results.read_bytes()
    )
    again = fedsim.open_run(study.result.folder.path)
    assert json.dumps(records(again.table)) == json.dumps(records(result.table))
    resumed = fedsim.resume(result.folder, progress=False)
    assert (resumed.folder / "report.html").is_file()
    assert repr(resumed) == repr(result)
