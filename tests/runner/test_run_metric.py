"""A run whose clients' language is written without spaces, and one with another normalizer."""

from __future__ import annotations

import pytest
import toys

from fedsim.cli import main
from fedsim.results.folder import RunFolder, read_results
from fedsim.results.ledger_reader import read_ledger

CHINESE = ("我想听音乐", "今天天气怎么样", "把灯关掉", "早上好")


@pytest.fixture
def study(tmp_path, model_folder):
    """f(languages, settings) -> a scenario file of a speaker for each language."""

    def make(languages, **more):
        def read(clips, language):
            texts = CHINESE if language == "zh" else toys.WORDS
            return list(texts[: len(clips)])

        people = toys.SPEAKERS[: len(languages)]
        corpus = toys.write_corpus(tmp_path / "clips", people, 4, languages, read)
        return toys.write_scenario(
            tmp_path / "toy.yaml",
            model={"id": str(model_folder("ctc-group"))},
            corpus={"path": str(corpus), "group_by": "speaker", "tuning_clips": 2, "test_clips": 2},
            clients={"budget_mb": 0.04},
            methods=["fp32", "uniform"],
            study=True,
            **more,
        )

    return make


def test_characters_from_the_device_to_the_table(study, tmp_path, capsys):
    assert main(["run", str(study(["zh", "zh"])), "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "CER %" in printed
    assert "WER" not in printed
    folder = RunFolder(tmp_path / "run")
    rows = read_results(folder.results)
    assert {(r.metric, r.text_normalizer) for r in rows} == {("cer", "basic")}
    with read_ledger(folder.ledger) as ledger:
        plans = {(plan.client, plan.method): plan for plan in ledger.plans()}
    for row in rows:
        plan = plans[row.client, row.method]
        assert (sum(plan.wrong), sum(plan.of)) == (row.char_errors, row.chars)
        assert row.low <= row.cer <= row.high
        assert row.words == row.clips  # each sentence is one word
    assert main(["report", str(tmp_path / "run")]) == 0


def test_both_kinds_of_language_are_counted_in_words_with_a_hint(study, tmp_path, capsys):
    assert main(["run", str(study(["en", "zh"])), "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "WER %" in printed
    assert "the language of bob is written without them" in printed
    assert "set metric: cer" in printed
    words = ["--set", "metric=wer", "--out", str(tmp_path / "again")]
    assert main(["run", str(tmp_path / "toy.yaml"), *words]) == 0
    assert "metric: cer" not in capsys.readouterr().out  # it was chosen


def test_a_normalizer_stands_beside_the_rate_and_is_not_mixed(study, tmp_path, capsys):
    """Results are not copied between runs that normalize otherwise, nor resumed."""
    matrix = {"text_normalizer": ["none", "english", "basic"]}
    file = study(["en"], matrix=matrix)
    assert main(["run", str(file), "--out", str(tmp_path / "runs" / "run")]) == 0
    assert "texts normalized by basic or english or none; lower is better" in " ".join(
        capsys.readouterr().out.split()
    )
    cells = sorted((tmp_path / "runs" / "run" / "cells").iterdir())
    found = [{r.text_normalizer for r in read_results(RunFolder(c).results)} for c in cells]
    assert found == [{"none"}, {"english"}, {"basic"}]
    yaml = cells[0] / "scenario.yaml"
    yaml.write_text(yaml.read_text().replace("text_normalizer: none", "text_normalizer: basic"))
    assert main(["run", "--resume", str(cells[0])]) == 1
    assert 'text_normalizer was "none" and is "basic"' in capsys.readouterr().err
