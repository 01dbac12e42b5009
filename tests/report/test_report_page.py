"""The HTML report: it holds every number, escapes every name, and says what is partial."""

import html
import io
import json
import re
import sys
from dataclasses import replace

import pytest
from processes import on_read_only_disk
from report_toys import clips_study, model, scenario, words_study, write_matrix, write_run
from rich.console import Console

from fedsim.cli import main
from fedsim.errors import FedsimError
from fedsim.report.page import write_report
from fedsim.results.ledger import Ledger
from fedsim.results.table import print_table

HOSTILE = """</script><script>alert("x")</script> & 'quoted' {{ 7 * 7 }}"""


def page_of(*paths, **more):
    return write_report(paths, **more).path.read_text()


def tables_in(page):
    """Every table as rows of the texts of its cells."""
    found = []
    for table in re.findall(r"<table.*?</table>", without_scripts(page), flags=re.S):
        rows = re.findall(r"<tr>(.*?)</tr>", table, flags=re.S)
        cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, flags=re.S) for row in rows]
        found.append([[html.unescape(re.sub(r"<.*?>", "", c)) for c in row] for row in cells])
    return found


def without_scripts(page):
    return re.sub(r"<script.*?</script>", "", page, flags=re.S)


def test_every_number_that_a_run_prints_is_in_the_report(tmp_path):
    path = write_run(tmp_path / "run", words_study())
    page = without_scripts(page_of(path))
    out = io.StringIO()
    with Ledger(path / "ledger.sqlite") as ledger:
        print_table(ledger.rows(), [], Console(file=out, width=200))
    printed = set(re.findall(r"\d+\.\d+", out.getvalue()))
    assert len(printed) > 8
    assert printed <= set(re.findall(r"\d+\.\d+", page))


def test_the_tables(tmp_path):
    results, comparisons, fairness, clients, spreads, fleet, releases, _ = tables_in(
        page_of(write_run(tmp_path / "run", words_study()))
    )
    columns = ["clients", "mean WER %", "median", "worst tenth", "spread, points"]
    assert fairness[0] == ["method", "tuned on", *columns, "clips no worse, %"]
    assert fairness[1] == ["fp32", "-", "2", "3.8", "3.8", "5.0", "1.2", "-"]
    others = ["2", "20.0", "20.0", "22.5", "2.5", "12.5"]  # 1 clip of 8
    assert fairness[4] == ["myqasr/cosine", "other", *others]
    assert results[0] == [
        *("method", "tuned on", "model MB", "mean bits", "WER %", "95 % interval", "clients"),
    ]
    uniform = ["uniform/cosine", "own", "38.5", "5.00", "60.0", "[60.0, 60.0]", "2"]
    assert results[2] == uniform
    assert [row[0] for row in results[1:]] == [
        *("fp32", "uniform/cosine", "myqasr/cosine", "myqasr/cosine"),
    ]
    assert comparisons[2][:3] == ["myqasr/cosine", "uniform/cosine", "−40.0"]
    assert comparisons[2][4:] == ["better", "-"]
    assert clients[0][-2:] == ["errors", "of"]
    ann = ["ann", "40.0", "myqasr/cosine", "client bob", "39.5", "5.00", "22.5"]
    assert next(row for row in clients if row[:4] == ann[:4])[:7] == ann
    assert spreads[1:] == [
        ["budget, MB", "2", *["40.0"] * 5],
        ["compressed models, MB", "6", "38.5", "38.8", "39.5", "39.5", "39.5"],
        ["test clips", "2", *["4"] * 5],
    ]
    assert fleet[1:] == [
        ["ann", "40.0", "38.5–39.5", "4", "finished"],
        ["bob", "40.0", "38.5–39.5", "4", "finished"],
    ]
    assert releases[1] == ["sensitivity", "sense", "2", "32", "64", "no noise"]


def test_loops_have_columns(tmp_path):
    """Only where something looped: of 80 words of bob's own model 20 in two clips that looped."""
    study = words_study()
    looping = [
        (replace(row, looped=0, looped_errors=0, looped_words=0), plan) for row, plan in study
    ]
    row, plan = looping[6]
    looping[6] = (replace(row, looped=2, looped_errors=4, looped_words=20), plan)
    page = page_of(write_run(tmp_path / "run", looping))
    results, _, _, clients, *_ = tables_in(page)
    assert results[0][4:] == ["WER %", "95 % interval", "looped", "WER % without", "clients"]
    assert [r[6:8] for r in results[1:]] == [
        ["0", "3.8"],
        ["0", "60.0"],
        ["2", "20.0"],
        ["0", "20.0"],
    ]
    (own,) = [r for r in clients if r[0] == "bob" and r[2:4] == ["myqasr/cosine", "own"]]
    assert own[-4:] == ["2", "20.0", "8", "40"]
    plain = tables_in(page_of(write_run(tmp_path / "plain", study)))
    assert "looped" not in plain[0][0] + plain[3][0]


def test_rare_words_have_columns(tmp_path):
    """Of ten rare words of each client the models get 1 to 4 wrong; a note says which they are."""
    rare = {"rare_beyond": 2_000, "rare_words": 10}
    counted = [
        (replace(row, **rare, rare_errors=1 + i % 4, rare_rate=(1 + i % 4) / 10), plan)
        for i, (row, plan) in enumerate(words_study())
    ]
    page = page_of(write_run(tmp_path / "run", counted))
    results, _, fairness, *_ = tables_in(page)
    assert results[0][5:9] == ["95 % interval", "rare wrong %", "95 % interval", "clients"]
    assert [row[6] for row in results[1:]] == ["10.0", "20.0", "30.0", "40.0"]
    assert [row[-1] for row in fairness] == ["rare wrong %", "10.0", "20.0", "30.0", "40.0"]
    note = "Rare wrong: of the words beyond the 2,000 most frequent of their language, those that"
    assert note in page


def test_characters_are_the_rate_everywhere(tmp_path):
    """A run whose metric is CER: as the words of the same numbers, and nothing of WER."""
    counted = [
        (
            replace(
                *(row,),
                **{"metric": "cer", "text_normalizer": "none", "char_errors": row.errors},
                **{"chars": row.words, "cer": row.wer, "errors": 1, "words": 1, "wer": 1.0},
            ),
            plan,
        )
        for row, plan in words_study()
    ]
    path = write_run(tmp_path / "run", counted)
    page = page_of(path)
    results, _, _, clients, *_ = tables_in(page)
    plain = tables_in(page_of(write_run(tmp_path / "words", words_study())))
    assert results[0] == [head.replace("WER", "CER") for head in plain[0][0]]
    assert results[1:] == plain[0][1:]
    assert [row[-2:] for row in clients] == [row[-2:] for row in plain[3]]
    text = html.unescape(without_scripts(page))
    assert "The lowest CER of 3 compressed models: 20.0 %" in text
    assert "points of CER" in text
    assert "texts as they are before errors are counted" in text
    titles = re.findall(r'"title": ?"([^"]*rate[^"]*)"', page)
    assert {title for title in titles if "error rate" in title} == {"character error rate (CER), %"}


def test_the_report_says_what_was_asked_found_and_how_to_repeat_it(tmp_path):
    chosen = scenario("my_study", description="Do small models hear well?\nA line,\nand another.\n")
    path = write_run(tmp_path / "a run", words_study(), settings=chosen)
    page = html.unescape(without_scripts(page_of(path)))
    for text in (
        "<h1>my_study</h1>",
        '<p class="lead">Do small models hear well?</p>',
        '<p class="more">A line, and another.</p>',
        "The lowest WER of 3 compressed models: 20.0 %",
        "Does it help to tune on a user's own clips?",
        f"fedsim run '{path}/scenario.yaml'",
        "name: my_study",
        "1.0 min",  # 61.5 s, rounded
        json.loads((path / "versions.json").read_text())["torch"],
    ):
        assert text in page
    assert "These results are partial" not in page
    assert "set study: true" not in page


def test_one_claim_stands_first_with_its_figure_and_its_words(tmp_path):
    """Before what was asked: the first comparison that is decided, and its two models in blue."""
    page = page_of(write_run(tmp_path / "run", words_study()))
    head = page[page.index("<header>") : page.index("</header>")]
    claim = re.search(r'<p class="sentence">(.*?)</p>', head).group(1)
    assert claim == (
        "Of 100 words, myqasr/cosine makes 40.0 fewer errors than uniform/cosine"
        " (95 % interval 40.0 to 40.0)."
    )
    words = re.findall(r"<dt>(.*?)</dt>", without_scripts(head))
    assert words == ["myqasr", "uniform", "cosine", "95 % interval"]
    (spec,) = re.findall(r'data-for="error_by_method">(.*?)</script>', head)
    rows = max(json.loads(spec)["datasets"].values(), key=len)
    assert {row["line"]: row["named"] for row in rows} == {
        "full precision": False,
        "uniform/cosine, own clips": True,
        "myqasr/cosine, own clips": True,
        "myqasr/cosine, others' clips": False,
    }
    assert page.count('id="error_by_method"') == 1
    assert (
        "<p>myqasr/cosine tuned on own clips: the mean over 2 clients is WER 20.0 %, and 20.0 % of"
        " the client that is served worst; 0 % of the clips got no worse than in full precision."
    ) in html.unescape(page)
    assert page.index("</header>") < page.index('<section id="asked">')


def test_a_sweep_is_the_figure_of_its_claim(tmp_path):
    cells = [(30.0, words_study(30.0, 29.5, worse=2)), (40.0, words_study())]
    page = page_of(write_matrix(tmp_path / "run", "clients.budget_mb", cells))
    head = page[page.index("<header>") : page.index("</header>")]
    assert re.findall(r'class="chart" id="(\w+)"', head) == ["error_by_size"]


def test_what_nobody_counted_is_no_claim(tmp_path):
    row, plan = model("a", "uniform/minmax", "a", [0], [1])
    empty = [(replace(row, words=0, wer=None), replace(plan, of=(), wrong=()))]
    page = page_of(write_run(tmp_path / "run", empty, sensed=False))
    assert 'class="claim"' not in page


def test_no_open_table_is_longer_than_a_screen(tmp_path):
    """Longer ones are folded, and closed."""
    models = [model(f"client {i}", "uniform/none", "", [i % 2, 1]) for i in range(13)]
    page = without_scripts(page_of(write_run(tmp_path / "run", models)))
    assert "<details open" not in page
    opened = re.sub(r"<details>.*?</details>", "", page, flags=re.S)
    rows = [table.count("<tr>") - 1 for table in re.findall("<table.*?</table>", opened, re.S)]
    assert len(rows) > 1
    assert max(rows) <= 12
    assert "<summary>Results of each client: 13 rows</summary>" in page


def test_small_models_have_a_decimal_more(tmp_path):
    models = [model("a", "uniform/none", "", [1, 0], budget=0.75, mb=0.742)]
    page = page_of(write_run(tmp_path / "run", models, sensed=False))
    assert tables_in(page)[0][1][2] == "0.74"


def test_hostile_names_are_text(tmp_path):
    name = f"eve {HOSTILE}"
    models = [
        model(name, "uniform/cosine", name, [1, 2], [9, 9]),
        model(name, "myqasr/cosine", name, [1, 2], [9, 9]),
    ]
    chosen = scenario(description=HOSTILE)
    failures = [(f"joe {HOSTILE}", "sense", HOSTILE)]
    path = write_run(tmp_path / "run", models, settings=chosen, failures=failures)
    page = page_of(path)
    assert page.count("<script") == page.count("</script>")
    assert "alert(" in page
    assert '<script>alert("x")' not in page
    assert html.unescape(without_scripts(page)).count(f"eve {HOSTILE}") == 3
    for spec in re.findall(r'<script type="application/json".*?>(.*?)</script>', page, flags=re.S):
        assert "$schema" in json.loads(spec)


def test_without_counts_of_clips_the_report_says_how_to_get_them(tmp_path):
    models = [model(c, "uniform/none", "", [1, 2], [9, 9], study=False) for c in "ab"]
    page = page_of(write_run(tmp_path / "run", models, sensed=False))
    assert "set study: true in the scenario" in page
    results, _, clients, *_ = tables_in(page)
    assert results[0][4:] == ["WER %", "clients"]  # no column of intervals that nobody knows
    assert results[1][4:] == ["16.7", "2"]
    assert clients[1][6:8] == ["16.7", "[6.7, 26.7]"]


def test_partial_results_are_shown_as_such(tmp_path):
    failures = [("eve", "sense", "client 'eve': no clips.")]
    path = write_run(tmp_path / "run", words_study(), failures=failures, ended=False)
    made = write_report([path])
    page = html.unescape(made.path.read_text())
    assert made.gaps == (
        "The run has not ended, or was cut off; 2 clients finished so far.",
        "1 client failed.",
    )
    assert "These results are partial." in page
    assert "<b>eve</b> (sense): client 'eve': no clips." in page
    fleet = next(t for t in tables_in(page) if t[0][0] == "client" and "state" in t[0])
    assert fleet[-1] == ["eve", "-", "-", "-", "failed"]


def test_several_runs_stand_side_by_side(tmp_path):
    one = write_run(
        tmp_path / "one", words_study(30.0), settings=scenario(clients={"budget_mb": 30.0})
    )
    two = write_run(tmp_path / "two", clips_study())
    page = page_of(one, two, out=tmp_path / "both.html")
    results = tables_in(page)[0]
    assert results[0][:2] == ["run", "budget MB"]
    assert results[0][-5:] == ["WER %", "95 % interval", "accuracy %", "95 % interval", "clients"]
    assert {row[0] for row in results[1:]} == {"toy one", "toy two"}
    assert ["clients.budget_mb", "30", "40"] in [row for t in tables_in(page) for row in t]
    names = re.findall(r'<div class="chart" id="(\w+)"', page)
    assert "error_by_method_wer" in names
    assert "error_by_method_accuracy" in names
    assert len(names) == len(set(names))


def test_a_matrix_has_a_column_for_each_setting(tmp_path):
    cells = [(30.0, words_study(30.0)), (40.0, words_study())]
    path = write_matrix(tmp_path / "run", "clients.budget_mb", cells)
    results = tables_in(page_of(path))[0]
    assert [row[0] for row in results] == ["budget MB", *["30"] * 4, *["40"] * 4]


def test_one_run_gives_one_report(tmp_path):
    path = write_run(tmp_path / "run", clips_study())
    assert page_of(path, out=tmp_path / "a.html") == page_of(path, out=tmp_path / "b.html")


def test_long_tables_are_cut_and_say_so(tmp_path):
    path = write_run(tmp_path / "run", words_study())
    page = page_of(path, max_rows=3)
    assert "The first 3 of 8 rows; results.parquet in the run folder has all." in page
    assert "The first" not in page_of(path, max_rows=8)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run", clips_study(), failures=[("eve", "sense", "gone.")])
    assert main(["report", "run"]) == 0
    assert (run / "report.html").is_file()
    out, err = capsys.readouterr()
    assert out == f"report: {tmp_path / 'run/report.html'}\n"
    assert err == "partial: 1 client failed.\n"
    two = write_run(tmp_path / "two", words_study())
    assert main(["report", "run", str(two), "--figures", "drawn"]) == 0
    assert (tmp_path / "report.html").is_file()
    drawn = sorted(p.name for p in (tmp_path / "drawn").iterdir())
    assert "transfer_1_accuracy.svg" in drawn
    assert f"figures: {len(drawn)} files in {tmp_path / 'drawn'}" in capsys.readouterr().out


def test_the_command_explains_what_it_cannot_do(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    assert "check the path" in capsys.readouterr().err
    run = write_run(tmp_path / "run", clips_study())
    (tmp_path / "file").write_text("")
    assert main(["report", str(run), "--out", str(tmp_path / "file/x.html")]) == 1
    assert "name another file with --out" in capsys.readouterr().err
    with pytest.raises(FedsimError, match="run it again"):
        write_report([write_run(tmp_path / "empty", [])])


def test_runs_on_a_read_only_disk(tmp_path):
    """One that has ended, and one that was killed: its ledger still has a write-ahead log."""
    disk = tmp_path / "disk"
    write_run(disk / "ended", words_study())
    killed = write_run(disk / "killed", words_study(30.0), ended=False)
    with Ledger(killed / "ledger.sqlite") as ledger:
        ledger.fail_client("late", "sense", "no clips")
        files = {name: (killed / name).read_bytes() for name in ("ledger.sqlite-wal",)}
        whole = (killed / "ledger.sqlite").read_bytes()
    (killed / "ledger.sqlite").write_bytes(whole)
    for name, content in files.items():
        (killed / name).write_bytes(content)
    out = tmp_path / "report.html"
    runs, elsewhere = ["report", str(disk / "ended"), str(killed)], ["--out", str(out)]
    code = f"from fedsim.cli import main; print(main({runs + elsewhere}), main({runs[:2]}))"
    done = on_read_only_disk(disk, sys.executable, "-c", code)
    if done is None:
        pytest.skip("no read-only file system can be had here")
    assert done.stdout.splitlines()[-1:] == ["0 1"], done.stderr
    assert "1 client failed" in done.stderr
    assert "ann" in out.read_text()
    assert "the report cannot be written here (read-only file system): name another" in done.stderr


@pytest.mark.parametrize(
    ("dtypes", "fact"),
    [
        ([], None),
        (["float32"], None),
        (["bfloat16"], "bfloat16"),
        (["float32", "float16"], "float32, float16"),
    ],
)
def test_the_type_of_the_full_precision_model_is_among_the_facts(tmp_path, dtypes, fact):
    """Where it is not float32, as the table of a run says below it: sizes count its bytes."""
    paths = []
    for i, dtype in enumerate(dtypes or [None]):
        of_model = {"id": "org/model"} | ({} if dtype is None else {"dtype": dtype})
        settings = scenario(f"toy-{i}", model=of_model)
        paths.append(write_run(tmp_path / str(i), words_study(), settings=settings))
    page = without_scripts(page_of(*paths, out=tmp_path / "report.html"))
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert "full precision, MB" in facts
    assert facts.get("full precision is") == fact
