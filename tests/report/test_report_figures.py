"""Figures: their data, that they can be drawn, and that their lines can be distinguished."""

import math
import re
from dataclasses import replace

import pytest
from report_toys import clips_study, model, words_study, write_matrix, write_run

from fedsim.errors import FedsimError
from fedsim.report import figures, tables
from fedsim.report.figure_selection import figures_of
from fedsim.report.style import COLOURS, colour, save, shape
from fedsim.results.labels import TUNING_CLIPS
from fedsim.results.runs import read_runs


def parts_of(path):
    return read_runs([path])[0].parts


def names(parts):
    return [figure.name for figure in figures_of(parts)]


def layers(spec):
    return [leaf for one in spec["layer"] for leaf in layers(one)] if "layer" in spec else [spec]


def test_a_sweep_is_drawn_against_size(tmp_path):
    cells = [(30.0, words_study(30.0, 29.5, worse=2)), (40.0, words_study())]
    parts = parts_of(write_matrix(tmp_path / "run", "clients.budget_mb", cells))
    assert names(parts) == [
        *("error_by_size", "transfer_1", "transfer_2", "bits_by_layer", "sensitivity_by_layer"),
    ]
    spec = figures_of(parts)[0].chart.to_dict()
    assert spec["title"]["text"] == "Word errors against model size"
    drawn = layers(spec)
    assert [x["mark"]["type"] for x in drawn] == ["rule", *["area", "line", "point"] * 3, "point"]
    assert drawn[0]["encoding"]["y"]["title"] == "word error rate (WER), %"
    assert drawn[-1]["encoding"]["x"]["axis"] is None  # all have 5 bits: no axis to fit


def test_the_axis_of_bits_is_where_models_of_so_many_bits_are(tmp_path):
    cells = [
        (float(mb), [model("a", "myqasr/minmax", "a", [1], [9], float(mb), mb, bits=bits)])
        for mb, bits in ((20, (4, 4, 4, 4)), (30, (6, 6, 6, 6)), (40, (8, 8, 8, 8)))
    ]
    parts = parts_of(write_matrix(tmp_path / "run", "clients.budget_mb", cells))
    spec = figures.error_by_size(tables.size_points(parts), "WER").to_dict()
    axis = layers(spec)[-1]["encoding"]["x"]["axis"]
    assert axis["title"] == "mean bits per weight"
    assert axis["values"] == [20.0, 25.0, 30.0, 35.0, 40.0]
    start, slope = map(float, re.findall(r"-?\d+\.\d+", axis["labelExpr"]))
    assert [round((mb - start) / slope) for mb in axis["values"]] == [4, 5, 6, 7, 8]


def test_many_lines_have_vertical_intervals(tmp_path):
    methods = ["uniform/minmax", "uniform/cosine", "myqasr/minmax", "myqasr/cosine"]
    cells = [
        (mb, [model("a", m, "a", [i, 1, 2], [9] * 3, mb, mb) for i, m in enumerate(methods)])
        for mb in (30.0, 40.0)
    ]
    parts = parts_of(write_matrix(tmp_path / "run", "clients.budget_mb", cells))
    spec = figures.error_by_size(tables.size_points(parts), "WER").to_dict()
    rules = [x["mark"]["xOffset"] for x in layers(spec) if x["mark"]["type"] == "rule"]
    assert rules == [-6.0, -2.0, 2.0, 6.0]


def test_in_a_mixed_fleet_lines_only_guide_the_eye(tmp_path):
    models = [
        model(c, "uniform/cosine", c, [1, 3], [9, 9], mb) for c, mb in (("a", 30.0), ("b", 40.0))
    ]
    figure = figures_of(parts_of(write_run(tmp_path / "run", models)))[0]
    spec = figure.chart.to_dict()
    marks = {x["mark"]["type"]: x["mark"] for x in layers(spec)}
    assert marks["line"]["opacity"] == 0.5
    assert "rule" in marks
    assert "area" not in marks
    assert "another group of clients" in spec["title"]["subtitle"]


def test_huge_word_errors_have_a_logarithmic_axis(tmp_path):
    cells = [
        (mb, [model("a", "uniform/minmax", "a", [wrong, 2], [10, 10], mb, mb)])
        for mb, wrong in ((30.0, 120), (40.0, 1))
    ]
    parts = parts_of(write_matrix(tmp_path / "run", "clients.budget_mb", cells))
    figure = figures_of(parts)[0].chart.to_dict()
    y = next(x["encoding"]["y"] for x in layers(figure) if x["mark"]["type"] == "line")
    assert y["scale"]["type"] == "log"
    assert y["title"] == "word error rate (WER), % (logarithmic)"


def test_numbers_of_tuning_clips_are_drawn(tmp_path):
    cells = [(2, words_study(worse=2)), (8, words_study())]
    parts = parts_of(write_matrix(tmp_path / "run", TUNING_CLIPS, cells))
    assert names(parts)[0] == "error_by_tuning_clips"


def test_numbers_are_drawn_as_curves_and_words_as_lines(tmp_path):
    cells = [(4, words_study(worse=2)), (8, words_study())]
    bits = write_matrix(tmp_path / "bits", "quantization.activation_bits", cells)
    assert names(parts_of(bits))[:2] == ["error_by_activation_bits", "transfer_1"]
    cells = [("median", words_study()), ("mean", words_study(worse=2))]
    parts = parts_of(write_matrix(tmp_path / "words", "quantization.sensitivity", cells))
    assert names(parts)[:2] == ["error_by_method", "transfer_1"]
    assert [row["line"] for row in tables.method_rows(parts)][:2] == [
        "full precision",
        "sensitivity median · uniform/cosine, own clips",
    ]


def test_full_precision_alone_makes_no_figure(tmp_path):
    cells = [(n, [model("a", "fp32", "", [1], [9])]) for n in (2, 8)]
    parts = parts_of(write_matrix(tmp_path / "run", TUNING_CLIPS, cells))
    assert names(parts) == ["sensitivity_by_layer"]


def test_clips_without_words_make_no_figure(tmp_path):
    models = [model("a", m, "a", [0], [1]) for m in ("uniform/minmax", "myqasr/minmax")]
    empty = [(replace(row, words=0, wer=None), replace(p, of=(), wrong=())) for row, p in models]
    parts = parts_of(write_run(tmp_path / "run", empty, sensed=False))
    assert names(parts) == ["bits_by_layer"]


def test_one_budget_is_drawn_by_method_and_by_whose_clips(tmp_path):
    parts = parts_of(write_run(tmp_path / "run", clips_study()))
    assert names(parts) == [
        *("error_by_method", "transfer_1", "bits_by_layer", "sensitivity_by_layer"),
    ]
    spec = figures_of(parts)[1].chart.to_dict()
    assert spec["layer"][0]["encoding"]["x"]["sort"] == ["a", "b", "c", "no calibration"]
    assert spec["layer"][2]["encoding"]["text"]["format"] == ".1f"


def test_many_clients_are_drawn_apart(tmp_path):
    models = [model(str(i), "uniform/none", "-", [i % 3], [10]) for i in range(10)]
    assert names(parts_of(write_run(tmp_path / "run", models, sensed=False))) == ["error_by_client"]


def test_costs_are_drawn_if_the_times_are_known(tmp_path):
    models = [
        model("a", "uniform/none", "", [4], [10]),
        model("a", "uniform/cosine", "a", [1], [10]),
    ]
    path = write_run(tmp_path / "run", models, sensed=False)
    (path / "timing.json").write_text('{"calibration_seconds": {"none": 0.1, "cosine": 2}}')
    assert names(parts_of(path)) == ["error_by_method", "gain_by_seconds"]


def test_histograms_from_quantiles():
    table = [
        {"group": group, "layer": "conv", "q": q, "value": width * q}
        for group, width in (("f", 2.0), ("m", 4.0))
        for q in (0.0, 0.5, 1.0)
    ]
    spec = figures.activations_by_group(table).to_dict()
    (drawn,) = spec["datasets"].values()
    heights = {g: {r["density"] for r in drawn if r["line"] == g} for g in ("f", "m")}
    assert heights == {"f": {0.5, 0.0}, "m": {0.25, 0.0}}


def test_a_figure_of_chosen_layers():
    table = [
        {"group": "f", "layer": layer, "q": q, "value": q} for layer in "abc" for q in (0.0, 1.0)
    ]
    spec = figures.activations_by_group(table, ["c", "a"]).to_dict()
    assert spec["facet"]["sort"] == ["c", "a"]
    (drawn,) = spec["datasets"].values()
    assert {row["layer"] for row in drawn} == {"a", "c"}


def test_lines_differ_without_colours_and_for_the_colour_blind():
    lines = [f"line {i}" for i in range(7)]
    assert len(set(shape(lines).to_dict()["scale"]["range"])) == 7
    assert len(set(colour(lines[:6]).to_dict()["scale"]["range"])) == 6

    def light(colour):  # WCAG's relative luminance
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    assert all(1.05 / (light(c) + 0.05) > 2 for c in COLOURS)  # seen on white


def test_a_figure_is_saved_three_times(tmp_path):
    parts = parts_of(write_run(tmp_path / "run", clips_study()))
    chart = figures_of(parts)[1].chart
    files = save(chart, tmp_path / "figures/matrix.v1")
    assert [f.name for f in files] == ["matrix.v1.html", "matrix.v1.svg", "matrix.v1.png"]
    page, svg, png = files
    assert "vegaEmbed" in page.read_text()
    assert "<script src" not in page.read_text()
    assert svg.read_text().startswith("<svg")
    assert "NaN" not in svg.read_text()
    assert png.read_bytes().startswith(b"\x89PNG")


def test_every_figure_can_be_drawn(tmp_path):
    import vl_convert

    cells = [(30.0, words_study(30.0, 29.5, worse=2)), (40.0, words_study())]
    drawn = figures_of(parts_of(write_matrix(tmp_path / "a", "clients.budget_mb", cells)))
    models = [model(str(i), "uniform/none", "-", [i % 3], [10]) for i in range(10)]
    drawn += figures_of(parts_of(write_run(tmp_path / "b", models)))
    for figure in drawn:
        svg = vl_convert.vegalite_to_svg(figure.chart.to_dict())
        assert "NaN" not in svg
        assert all(map(math.isfinite, map(float, re.findall(r'width="([\d.]+)"', svg))))


def test_a_figure_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    row = {"line": "a", "named": True, "rate": 1.0, "low": None, "high": None}
    chart = figures.error_by_method([row], "WER")
    with pytest.raises(FedsimError, match="name another folder"):
        save(chart, tmp_path / "file/figure")
