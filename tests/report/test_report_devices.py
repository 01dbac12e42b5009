"""A fleet as distributions: its budgets, sizes and clips, and how its clients ended."""

from collections import Counter

from report_toys import model, scenario, words_study, write_matrix, write_run
from round_toys import timed, timeline

from fedsim.report import figures
from fedsim.report.devicetables import budget_bins, endings_sentences, spreads_table
from fedsim.report.figure_selection import fleet_figures
from fedsim.results.runs import read_runs


def parts_of(*paths):
    return [part for run in read_runs(paths) for part in run.parts]


def of_budgets(budgets):
    return [model(f"c{i:02d}", "uniform/none", "", [1], [9], mb, 0.5) for i, mb in budgets]


def test_quartiles_of_what_clients_have(tmp_path):
    models = of_budgets(enumerate([1.0, 2.0, 4.0, 8.0, 16.0]))
    found = spreads_table(parts_of(write_run(tmp_path / "run", models)))
    budgets, small, clips = [[cell.text for cell in row] for row in found.rows]
    assert budgets == ["budget, MB", "5", "1.00", "2.00", "4.00", "8.00", "16.00"]
    assert small == ["compressed models, MB", "5", *["0.50"] * 5]
    assert clips == ["test clips", "5", *["1"] * 5]


def test_budgets_in_ranges(tmp_path):
    """Thirty budgets of 1 to 30 MB, one per client: in twenty ranges of 1.45 MB."""
    (part,) = parts_of(write_run(tmp_path / "run", of_budgets((i, i + 1.0) for i in range(30))))
    table = budget_bins(part)
    assert Counter(row["line"] for row in table) == {"clients": 20}
    for place, row in enumerate(table):
        last = place == len(table) - 1
        inside = [b for b in range(1, 31) if row["low"] <= b < row["high"] or (last and b == 30)]
        assert row["clients"] == len(inside)
    spec = figures.budgets(table).to_dict()
    assert "color" not in spec["encoding"]


def test_classes_of_devices_are_stacked(tmp_path):
    lines = [timeline("ann", "phone", 9.0), timeline("bob", "watch", 9.0)]
    models = [
        model(c, "uniform/none", "", [1], [9], mb) for c, mb in (("ann", 40.0), ("bob", 20.0))
    ]
    path = write_run(tmp_path / "run", models, timed=timed(lines))
    (part,) = parts_of(path)
    assert budget_bins(part) == [
        {"line": "phone", "low": 30.0, "high": 40.0, "clients": 1},
        {"line": "watch", "low": 20.0, "high": 30.0, "clients": 1},
    ]
    assert "color" in figures.budgets(budget_bins(part)).to_dict()["encoding"]


def test_equal_budgets_make_no_figure(tmp_path):
    cells = [(mb, words_study(mb)) for mb in (30.0, 40.0)]
    parts = parts_of(write_matrix(tmp_path / "run", "clients.budget_mb", cells))
    assert fleet_figures(parts) == []


def test_how_clients_ended(tmp_path):
    failures = [("eve", "sense", "gone."), ("joe", "sense", "gone.", "dropped")]
    one = write_run(tmp_path / "one", words_study(), failures=failures)
    assert endings_sentences(parts_of(one)) == ["2 of 4 clients finished; dropped: 1; failed: 1."]
    two = write_run(tmp_path / "two", words_study(), settings=scenario("other"))
    assert endings_sentences(parts_of(one, two))[1] == "other: 2 of 2 clients finished."
