"""The data of the figures, worked out by hand."""

import pytest
from report_toys import LAYERS, WORDS, clips_study, model, words_study, write_matrix, write_run

from fedsim.report import layertables, tables
from fedsim.results.labels import TUNING_CLIPS
from fedsim.results.ledger import Ledger
from fedsim.results.rows import Sensed
from fedsim.results.runs import read_runs


def parts_of(*paths):
    return [part for run in read_runs(paths) for part in run.parts]


def without_bounds(table):
    return [{k: v for k, v in row.items() if k not in ("low", "high")} for row in table]


def test_a_sweep_of_sizes(tmp_path):
    cells = [(30.0, words_study(30.0, 29.5, worse=2)), (40.0, words_study())]
    parts = parts_of(write_matrix(tmp_path / "run", "clients.budget_mb", cells))
    table = tables.size_points(parts)
    own = [row for row in table if row["line"] == "myqasr/cosine, own clips"]
    same = {"line": "myqasr/cosine, own clips", "full": False, "bits": 5.0, "clients": 2}
    assert without_bounds(own) == [
        {**same, "budget": 30.0, "mb": 29.5, "rate": 40.0},
        {**same, "budget": 40.0, "mb": 39.5, "rate": 20.0},
    ]
    full = [row for row in table if row["full"]]
    assert [(row["line"], row["mb"], row["rate"]) for row in full] == [
        ("full precision", 275.0, 3.75),
        ("full precision", 275.0, 3.75),
    ]
    assert all(row["low"] <= row["rate"] <= row["high"] for row in table)


def test_a_mixed_fleet_has_one_point_per_budget(tmp_path):
    models = [
        model("a", "myqasr/cosine", "a", [1, 1], [10, 10], 30.0, 29.0),
        model("b", "myqasr/cosine", "b", [3, 0], [10, 10], 30.0, 30.0),
        model("c", "myqasr/cosine", "c", [0, 0], [10, 10], 40.0, 39.0),
    ]
    table = tables.size_points(parts_of(write_run(tmp_path / "run", models)))
    assert [(r["budget"], r["mb"], r["clients"], r["rate"]) for r in table] == [
        (30.0, 29.5, 2, 12.5),
        (40.0, 39.0, 1, 0.0),
    ]


def test_other_settings_make_lines_of_their_own(tmp_path):
    models = words_study()[:1]
    paths = [write_run(tmp_path / n, models) for n in ("one", "two")]
    table = tables.size_points(parts_of(*paths))
    assert [row["line"] for row in table] == [
        "toy one · full precision",
        "toy two · full precision",
    ]


def test_numbers_of_tuning_clips(tmp_path):
    cells = [(2, words_study(worse=2)), (8, words_study())]
    parts = parts_of(write_matrix(tmp_path / "run", TUNING_CLIPS, cells))
    table = tables.setting_points(parts, TUNING_CLIPS)
    uniform = [row for row in table if row["line"] == "uniform/cosine, own clips"]
    assert without_bounds(uniform) == [
        {"line": "uniform/cosine, own clips", "full": False, "x": 2, "rate": 80.0},
        {"line": "uniform/cosine, own clips", "full": False, "x": 8, "rate": 60.0},
    ]


def test_who_tests_whose_model(tmp_path):
    (part,) = parts_of(write_run(tmp_path / "run", clips_study()))
    table = tables.transfer_matrix(part, "myqasr/cosine")
    found = {(r["test"], r["tuned"]): (r["rate"], r["change"]) for r in table}
    assert found == {
        ("a", "a"): (75.0, 0.0),
        ("a", "b"): (50.0, -25.0),
        ("a", "c"): (25.0, -50.0),
        ("a", "no calibration"): (0.0, -75.0),
        ("b", "a"): (75.0, -25.0),
        ("b", "b"): (100.0, 0.0),
        ("b", "c"): (75.0, -25.0),
        ("b", "no calibration"): (25.0, -75.0),
        ("c", "a"): (100.0, 25.0),
        ("c", "b"): (75.0, 0.0),
        ("c", "c"): (75.0, 0.0),
        ("c", "no calibration"): (25.0, -50.0),
    }


def test_a_ring_of_four_makes_no_matrix(tmp_path):
    people = "abcd"
    models = [
        model(c, "myqasr/cosine", source, [0, 1])
        for i, c in enumerate(people)
        for source in (c, people[(i + 1) % 4])
    ]
    (part,) = parts_of(write_run(tmp_path / "run", models))
    assert tables.transfer_matrix(part, "myqasr/cosine") == []
    assert tables.transfer_matrix(part, "uniform/cosine") == []


def test_own_plans_without_calibration_stand_in_for_nobody(tmp_path):
    models = [row for row in clips_study() if row[0].tuned_on]
    models += [model(c, "myqasr/none", c, [1, 1, 1, 0]) for c in "abc"]
    (part,) = parts_of(write_run(tmp_path / "run", models))
    table = tables.transfer_matrix(part, "myqasr/cosine")
    assert [r["rate"] for r in table if r["tuned"] == tables.NO_CALIBRATION] == [25.0] * 3


def test_bits_of_the_first_method_whose_layers_differ(tmp_path):
    method, table = layertables.bits_table(parts_of(write_run(tmp_path / "run", words_study())))
    assert method == "myqasr/cosine"
    assert table[:4] == [
        {"model": "ann · 40 MB", "layer": i + 1, "name": LAYERS[i], "bits": bits}
        for i, bits in enumerate((6, 5, 4, 5))
    ]
    assert [row["model"] for row in table[4:]] == ["bob · 40 MB"] * 4


def test_no_bits_where_all_layers_have_one_depth(tmp_path):
    models = [model("a", "uniform/cosine", "a", [0, 1])]
    assert layertables.bits_table(parts_of(write_run(tmp_path / "run", models))) == ("", [])


def test_of_many_models_an_even_choice_is_drawn(tmp_path):
    models = [model(f"{i:03d}", "myqasr/cosine", f"{i:03d}", [0]) for i in range(100)]
    _, table = layertables.bits_table(parts_of(write_run(tmp_path / "run", models)))
    names = [row["model"].split()[0] for row in table if row["layer"] == 1]
    assert len(names) == layertables.MAX_MODELS
    assert (names[0], names[-1]) == ("000", "099")


def test_sensitivities_of_few_clients_are_curves(tmp_path):
    table = layertables.sensitivity_table(parts_of(write_run(tmp_path / "run", words_study())))
    assert [(r["line"], r["layer"], r["value"]) for r in table] == [
        *(("ann", i, v) for i, v in enumerate((0.5, 2.0, 0.125, 1.0), start=1)),
        *(("bob", i, v) for i, v in enumerate((1.5, 2.0, 0.125, 1.0), start=1)),
    ]
    assert table[1]["name"] == "encoder.0.attention"


def test_sensitivities_of_many_clients_are_a_median_and_a_band(tmp_path):
    models = [model(str(i), "myqasr/cosine", str(i), [0]) for i in range(9)]
    table = layertables.sensitivity_table(parts_of(write_run(tmp_path / "run", models)))
    assert len(table) == len(LAYERS)
    first = {"line": "median of 9 clients", "layer": 1, "name": "conv.0"}
    assert table[0] == {**first, "value": 4.5, "low": 0.5, "high": 8.5}


def test_releases_are_counted_apart_from_clients(tmp_path):
    cells = [
        (seed, [model(str(i), "myqasr/cosine", str(i), [0]) for i in range(9)]) for seed in (0, 1)
    ]
    path = write_matrix(tmp_path / "run", "seed", cells)
    with Ledger(path / "cells/002/ledger.sqlite") as ledger:
        for i in range(9):  # other releases of the same clients
            ledger.finish_client(str(i), [], sensed=Sensed(str(i), (9.0 + i, 1.0, 1.0, 1.0)))
    assert layertables.sensitivity_table(parts_of(path))[0]["line"] == (
        "median of 18 releases of 9 clients"
    )


def test_combinations_that_sense_alike_are_drawn_once(tmp_path):
    cells = [(30.0, words_study(30.0)), (40.0, words_study())]
    parts = parts_of(write_matrix(tmp_path / "run", "clients.budget_mb", cells))
    assert {row["line"] for row in layertables.sensitivity_table(parts)} == {"ann", "bob"}


def test_activations_of_few_clients(tmp_path):
    quantiles = tuple(float(10 * layer + i) for layer in range(4) for i in range(3))
    path = write_run(tmp_path / "run", words_study(), quantiles=quantiles)
    shown, table = layertables.activation_quantiles(parts_of(path))
    assert shown == ["1: conv.0", "2: 0.attention", "3: 0.ffn", "4: lm_head"]
    ann = [row for row in table if row["group"] == "ann" and row["layer"] == shown[1]]
    assert [(row["q"], row["value"]) for row in ann] == [(0.0, 10.0), (0.5, 11.0), (1.0, 12.0)]
    plain = write_run(tmp_path / "plain", words_study())
    assert layertables.activation_quantiles(parts_of(plain)) == ([], [])


def test_how_clients_differ(tmp_path):
    wrong = {"a": 0, "b": 0, "c": 1, "d": 4}
    models = [model(c, "uniform/none", "", [n], [10]) for c, n in wrong.items()]
    table = tables.client_rates(parts_of(write_run(tmp_path / "run", models)))
    quartiles = {"line": "uniform/none, no clips", "q25": 0.0, "median": 5.0, "q75": 17.5}
    quartiles |= {"mean": 12.5, "worst tenth": 40.0}
    assert table == [
        {**quartiles, "rate": 0.0, "clients": 2},
        {**quartiles, "rate": 10.0, "clients": 1},
        {**quartiles, "rate": 40.0, "clients": 1},
    ]


def test_a_client_that_tests_several_models_counts_once(tmp_path):
    table = tables.client_rates(parts_of(write_run(tmp_path / "run", clips_study())))
    others = [row for row in table if row["line"] == "myqasr/cosine, others' clips"]
    assert [(row["rate"], row["clients"]) for row in others] == [(37.5, 1), (75.0, 1), (87.5, 1)]


def test_what_calibration_costs(tmp_path):
    models = [
        model("a", "uniform/none", "", [4, 4], [10, 10]),
        model("a", "uniform/cosine", "a", [1, 2], [10, 10]),
        model("a", "myqasr/cosine", "a", [0, 0], [10, 10]),
    ]
    parts = parts_of(write_run(tmp_path / "run", models))
    table = tables.calibration_costs(parts, {"none": 0.1, "cosine": 2.5})
    assert table == [
        {"line": "uniform", "calibration": "cosine", "seconds": 2.5, "gain": 25.0},
        {"line": "uniform", "calibration": "none", "seconds": 0.1, "gain": 0.0},
    ]
    assert tables.calibration_costs(parts, {}) == []


@pytest.mark.parametrize("study", [True, False])
def test_rates_of_methods(tmp_path, study):
    models = [
        model("a", "uniform/none", "", [1, 2], WORDS[:2], study=study),
        model("b", "uniform/none", "", [0, 2], WORDS[:2], study=study),
    ]
    (row,) = tables.method_rows(parts_of(write_run(tmp_path / "run", models)))
    assert row["rate"] == 12.5
    assert (
        row["low"] is not None
    ) is study  # without counts there is no interval for several clients


def test_many_budgets_are_groups_of_like_models(tmp_path):
    # Beyond 10 MB all models have one size, so that those clients are one group.
    models = [
        model(f"{i:02d}", m, "", [i], [100], float(i), min(i, 10) - 0.5)
        for i in range(1, 31)
        for m in ("fp32", "uniform/none")
    ]
    table = tables.size_points(parts_of(write_run(tmp_path / "run", models)))
    full, small = ([r for r in table if r["full"] is f] for f in (True, False))
    assert [r["budget"] for r in full] == [r["budget"] for r in small]
    assert [r["budget"] for r in small] == sorted(r["budget"] for r in small)
    assert len(small) <= 8
    assert sum(r["clients"] for r in small) == 30
    assert small[-1]["mb"] == 9.5
    assert small[-1]["clients"] == 21
    assert small[-1]["budget"] == 20.0  # the mean of 10 .. 30
    assert small[-1]["rate"] == 20.0  # and so of the errors in 100 words each


def test_few_budgets_are_points_of_their_own(tmp_path):
    models = [model(f"{i:02d}", "uniform/none", "", [i], [100], float(i), i) for i in range(1, 13)]
    table = tables.size_points(parts_of(write_run(tmp_path / "run", models)))
    assert [(r["budget"], r["clients"]) for r in table] == [(float(i), 1) for i in range(1, 13)]


def test_many_rates_are_steps(tmp_path):
    models = [model(f"{i:03d}", "uniform/none", "", [i], [1000]) for i in range(401)]
    table = tables.client_rates(parts_of(write_run(tmp_path / "run", models)))
    assert len(table) == 101
    assert sum(row["clients"] for row in table) == 401
    assert [row["rate"] for row in table] == [round(0.4 * i, 2) for i in range(101)]
    assert {row["clients"] for row in table[1:-1]} == {3, 4, 5}  # a half is rounded to even
    assert table[0]["median"] == 20.0
