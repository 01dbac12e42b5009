"""Errors on rare words over all clients: the share, its interval, and where it is shown."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from report_toys import WORDS, model, scenario, words_study, write_run
from rich.console import Console
from scipy import stats

import fedsim
from fedsim.report.clienttables import fairness_sentences, fairness_table
from fedsim.report.figure_selection import figures_of
from fedsim.report.htmltables import results_table
from fedsim.results.rates import lines_of
from fedsim.results.table import print_table


def with_rare(models, counts, beyond=5_000):
    """The same models with (rare errors, rare words) each."""
    return [
        (
            replace(
                *(row,),
                **{"rare_beyond": beyond, "rare_errors": wrong, "rare_words": of},
                rare_rate=wrong / of if of else None,
            ),
            plan,
        )
        for (row, plan), (wrong, of) in zip(models, counts, strict=True)
    ]


def lines_in(path):
    return [line for part in fedsim.open_run(path).run.parts for line in lines_of(part)]


def test_the_share_is_of_all_clients_together(tmp_path):
    """8 of 20 rare words: a client with many counts more, and one without any counts nothing."""
    models = [model(client, "fp32", "", [1, 0, 1, 0], WORDS) for client in ("ann", "bob", "cyd")]
    path = write_run(tmp_path / "run", with_rare(models, [(6, 10), (2, 10), (0, 0)]))
    (line,) = lines_in(path)
    assert line.rare.value == 40.0
    assert 0.0 <= line.rare.low <= 40.0 <= line.rare.high <= 100.0
    nothing = write_run(tmp_path / "none", with_rare(models, [(0, 0)] * 3))
    assert [line.rare for line in lines_in(nothing)] == [None]
    assert [line.rare for line in lines_in(write_run(tmp_path / "plain", models))] == [None]


def test_the_interval_is_over_clients(tmp_path):
    """Forty clients with one rare word each, wrong for every second: a binomial distribution."""
    n, names = 40, [f"c{i:02d}" for i in range(40)]
    models = [model(name, "fp32", "", [0], [9]) for name in names]
    counted = with_rare(models, [(i % 2, 1) for i in range(n)])
    (line,) = lines_in(write_run(tmp_path / "run", counted))
    widen = math.sqrt(n / (n - 1)) * stats.t(n - 1).ppf(0.975) / stats.norm.ppf(0.975)
    ends = [50 + widen * (100 * stats.binom(n, 0.5).ppf(p) / n - 50) for p in (0.025, 0.975)]
    assert (line.rare.low, line.rare.high) == pytest.approx(ends, abs=2.7)  # one client in forty
    chosen = scenario(clients={"budget_mb": 40.0, "select": names})  # not a sample of others
    (line,) = lines_in(write_run(tmp_path / "chosen", counted, settings=chosen))
    assert (line.rare.value, line.rare.low, line.rare.high) == (50.0, None, None)
    (line,) = lines_in(write_run(tmp_path / "one", counted[1:2]))
    assert (line.rare.value, line.rare.low, line.rare.high) == (100.0, None, None)


def texts(table):
    return [list(table.heads), *([cell.text for cell in row] for row in table.rows)]


def test_where_it_is_shown(tmp_path):
    ann, bob = ([(wrong + more, 4) for wrong in range(4)] for more in (0, 1))
    path = write_run(tmp_path / "run", with_rare(words_study(), ann + bob))
    result, lines = fedsim.open_run(path), lines_in(path)
    expected = [12.5, 37.5, 62.5, 87.5]
    assert [line.rare.value for line in lines] == expected
    for table in (fairness_table(lines), results_table(lines)):
        heads, *rows = texts(table)
        at = heads.index("rare wrong %")
        assert [row[at] for row in rows] == [f"{share:.1f}" for share in expected]
    assert heads[at + 1] == "95 % interval"  # of the results; no number beside it has one else
    (sentence,) = fairness_sentences(lines[:1])
    rare = "12.5 % of the words beyond the 5,000 most frequent of their language are wrong"
    assert rare in sentence
    (figure,) = [one for one in figures_of(result.run.parts) if one.name == "rare_words"]
    assert figure.of_clients
    assert "words beyond the 5,000 most frequent of their language" in figure.chart.to_json()
    table = result.table if isinstance(result.table, list) else result.table.to_dict("records")
    assert [row["rare_percent"] for row in table] == expected
    assert all(row["rare_low"] <= row["rare_percent"] <= row["rare_high"] for row in table)
    out = io.StringIO()
    print_table([row for line in lines for row in line.rows], [], Console(file=out, width=120))
    printed = " ".join(out.getvalue().split())
    assert "rare wrong %: of the words beyond the 5,000 most frequent" in printed
    assert "WER % rare wrong % clients" in printed


def test_nothing_is_shown_that_was_not_counted(tmp_path):
    path = write_run(tmp_path / "run", words_study())
    result, lines = fedsim.open_run(path), lines_in(path)
    for table in (fairness_table(lines), results_table(lines)):
        assert not any("rare" in head for head in table.heads)
    assert not any("rare" in sentence for sentence in fairness_sentences(lines))
    assert "rare_words" not in [figure.name for figure in figures_of(result.run.parts)]
    table = result.table if isinstance(result.table, list) else result.table.to_dict("records")
    assert not any("rare" in key for key in table[0])
