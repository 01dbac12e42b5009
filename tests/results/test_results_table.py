"""The printed table against numbers worked out by hand."""

import io
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples
from rich.console import Console

from fedsim.results.records import Failure
from fedsim.results.rows import Row
from fedsim.results.table import print_table

MB = 2**20


def row(client, method, tuned_on, errors=None, words=None, file_mb=30.0, bits=5.5, **more):
    allocation, _, calibration = method.partition("/")
    made = Row(
        *(client, method, allocation, calibration or "-", "nearest", "-", tuned_on),
        *(40 * MB, int(file_mb * MB)),
        *(bits, 40, errors, words, errors / words if words else None, None, None, None),
        *(None, None, "0" * 64),
    )
    return replace(made, **more)


ROWS = [
    row("en", "fp32", "", 8, 100, 276.0, 32.0),
    row("en", "myqasr/cosine", "en", 10, 100),
    row("en", "myqasr/cosine", "it", 15, 100),
    row("it", "fp32", "", 90, 300, 276.0, 32.0),
    row("it", "myqasr/cosine", "it", 60, 300, 35.25, 6.25),
    row("it", "myqasr/cosine", "en", 105, 300, 35.25, 6.25),
]


def printed(rows, failures=(), width=80, terminal=False):
    out = io.StringIO()
    print_table(rows, failures, Console(file=out, width=width, force_terminal=terminal))
    return out.getvalue()


def cells(text, start):
    """The words of each line that begins so, in order."""
    return [line.split() for line in text.splitlines() if line.split()[: len(start)] == start]


def test_rates_are_pooled_and_sizes_are_ranges():
    text = printed(ROWS)
    # 98 of 400 words = 24.5 %; 70 of 400 = 17.5 %; 120 of 400 = 30.0 %. The means of the clients'
    # rates would be 19.0, 15.0 and 25.0.
    assert cells(text, ["fp32", "-"]) == [["fp32", "-", "276.0", "32.00", "24.5", "2"]]
    sizes = ["30.0-35.2", "5.50-6.25"]
    assert cells(text, ["myqasr/cosine", "own"])[0][2:] == [*sizes, "17.5", "2"]
    assert cells(text, ["myqasr/cosine", "other"])[0][2:] == [*sizes, "30.0", "2"]
    assert "accuracy" not in text


def test_a_block_by_client():
    text = printed(ROWS)
    assert cells(text, ["en"]) == [["en", "40.0", "8.0", "10.0", "15.0"]]
    assert cells(text, ["it"]) == [["it", "40.0", "30.0", "20.0", "35.0"]]


def test_full_precision_and_uniform_come_first():
    names = ["myqasr/cosine", "fp32", "uniform/minmax", "linear/cosine"]
    text = printed([row("en", name, "en", 1, 10) for name in names])
    found = [line.split()[0] for line in text.splitlines() if line.split()[1:2] == ["own"]]
    found = found[: len(names)]  # the block by client may repeat them
    assert found == ["fp32", "uniform/minmax", "linear/cosine", "myqasr/cosine"]


def test_a_method_that_some_clients_lack_says_so():
    text = printed(ROWS[1:])
    assert cells(text, ["fp32", "-"])[0][-3:] == ["1", "of", "2"]
    assert cells(text, ["en"]) == [["en", "40.0", "-", "10.0", "15.0"]]


def test_accuracy_counts_clips():
    rows = [
        row("a", "fp32", "", correct=9, clips=10, accuracy=0.9),
        row("b", "fp32", "", correct=15, clips=30, accuracy=0.5),
    ]
    text = printed(rows)
    assert cells(text, ["fp32", "-"])[0][4] == "60.0"  # 24 of 40 clips
    assert "accuracy %" in text
    assert "WER" not in text


CHARACTERS = {"metric": "cer", "text_normalizer": "none"}


def test_character_errors_where_they_are_the_metric():
    """Of 100 and 300 characters; the words of these clips do not count."""
    rows = [
        row("zh", "fp32", "", 9, 10, char_errors=20, chars=100, **CHARACTERS),
        row("ja", "fp32", "", 9, 10, char_errors=90, chars=300, **CHARACTERS),
    ]
    text = printed(rows, width=120)
    assert cells(text, ["fp32", "-"])[0][4:] == ["27.5", "2"]  # 110 of 400
    assert "CER %  clients" in text
    assert "CER % by client" in text
    legend = "CER: character errors over characters of all clients together, texts as they are"
    assert f"{legend}; lower is better" in text
    assert "WER" not in text
    looping = [replace(r, looped=1, looped_errors=10, looped_words=50) for r in rows]
    text = printed(looping, width=120)
    assert cells(text, ["fp32", "-"])[0][4:] == ["27.5", "2", "30.0", "2"]  # 90 of 300 are left
    assert "CER %  looped  CER % without  clients" in text


def test_the_normalizer_stands_beside_the_rate():
    assert "all clients together, texts normalized by basic; lower" in printed(ROWS, width=120)
    texts = [replace(ROWS[0], text_normalizer="english"), *ROWS[1:]]
    both = "texts normalized by basic or english"
    assert both in printed(texts, width=140)


LOOPING = [
    replace(r, looped=n, looped_errors=e, looped_words=w)
    for r, (n, e, w) in zip(
        ROWS,
        [(0, 0, 0), (1, 4, 10), (0, 0, 0), (0, 0, 0), (2, 50, 100), (1, 105, 300)],
        strict=True,
    )
]


def test_files_of_another_format_are_named():
    rows = [
        row("en", "fp32", "", 8, 100, 276.0, 32.0, format="-", runtime="-"),
        row("en", "myqasr/onnx", "en", 10, 100, calibration="-", format="onnx", runtime="onnx"),
    ]
    text = printed(rows, width=120)
    assert "model MB, onnx" in text
    assert "onnx: tested with the exported file in onnxruntime, which rounds inputs to 8" in text
    assert "model MB: all files of the model in onnx that the client receives" in text
    assert "onnx" not in printed(ROWS)


def test_loops_have_columns_and_a_line_in_the_legend():
    text = printed(LOOPING, width=120)
    # own: 70 errors of 400 words, without 54 of 110: 16 of 290; other: 15 of 100 are left of 120.
    assert cells(text, ["fp32", "-"])[0][4:] == ["24.5", "0", "24.5", "2"]
    assert cells(text, ["myqasr/cosine", "own"])[0][4:] == ["17.5", "3", "5.5", "2"]
    assert cells(text, ["myqasr/cosine", "other"])[0][4:] == ["30.0", "1", "15.0", "2"]
    assert "WER %  looped  WER % without  clients" in text
    assert "looped: transcripts that were cut because the model repeated itself" in text
    assert "looped" in printed(LOOPING)
    assert max(map(len, printed(LOOPING).splitlines())) <= 80


def test_no_column_where_nothing_looped():
    quiet = [replace(r, looped=0, looped_errors=0, looped_words=0) for r in ROWS]
    assert printed(quiet) == printed(ROWS)
    assert "loop" not in printed(ROWS)


def test_models_that_cannot_loop_beside_one_that_does():
    rows = [
        row("en", "fp32", "", 8, 100),
        row("en", "uniform/none", "", 8, 8, looped=4, looped_errors=8, looped_words=8),
    ]
    assert cells(printed(rows), ["fp32", "-"])[0][4:] == ["8.0", "-", "8.0", "1"]
    assert cells(printed(rows), ["uniform/none"])[0][4:] == ["100.0", "4", "-", "1"]


def test_no_words_at_all_is_no_rate():
    assert cells(printed([row("a", "fp32", "", 0, 0)]), ["fp32"])[0][4] == "-"


@settings(max_examples=examples(25), deadline=None)
@given(width=st.integers(80, 160), methods=st.integers(1, 20))
def test_nothing_is_wider_than_the_terminal_or_cut_off(width, methods):
    rows = [
        replace(row(c, f"m{i}/cosine", c, 1, 10), allocation="myqasr")
        for c in ("en", "it", "ru")
        for i in range(methods)
    ]
    text = printed(rows, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "WER % by client" in text


def test_many_clients_get_no_block():
    rows = [row(f"c{i}", "fp32", "", 1, 10) for i in range(13)]
    assert "by client" not in printed(rows)
    assert "by client" in printed(rows[:12])
    assert "by client" not in printed(rows[:1])


def test_piped_output_is_plain_and_a_terminal_has_colours():
    failures = [Failure("de", "sense", "no clips")]
    assert "\x1b" not in printed(ROWS, failures)
    assert "\x1b" in printed(ROWS, failures, terminal=True)


def test_names_are_not_markup():
    text = printed([row(c, "fp32", "", 1, 10) for c in ("[bold]x", ":smile:")])
    assert "[bold]x" in text
    assert ":smile:" in text


def test_failures_are_listed_and_many_are_counted():
    long = "a sentence that is far longer than the terminal is wide, " * 3
    failures = [Failure("c0", "sense", long)]
    failures += [Failure(f"c{i}", "personalize", "no room") for i in range(1, 9)]
    text = printed(ROWS, failures)
    assert "9 clients failed" in text
    assert f"c0 (sense): {long}" in text
    assert "c4 (personalize): no room" in text
    assert "c5 (" not in text
    assert "and 4 more" in text
    assert "1 client failed" in printed(ROWS, failures[:1])
    assert "failed" not in printed(ROWS)


def test_no_rows():
    assert printed([], [Failure("a", "sense", "no clips")]).startswith("No client finished")
