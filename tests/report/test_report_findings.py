"""What a report says was found: verdicts, intervals, and nothing where nothing is known."""

from dataclasses import replace

from report_toys import clips_study, model, words_study, write_matrix, write_run

from fedsim.report import findings
from fedsim.report.comparisons import CALIBRATION, COST, LAYERS, ORDER, OWN_CLIPS, RUNTIME, WAY
from fedsim.results.lines import size_digits, span
from fedsim.results.rates import Rate, lines_of
from fedsim.results.runs import read_runs


def lines_in(path):
    return [line for run in read_runs([path]) for part in run.parts for line in lines_of(part)]


def compared_in(path):
    return findings.comparisons(read_runs([path])[0].parts)


def asked(compared):
    return {(c.pair.question, *c.pair.names): c for c in compared}


def test_questions_and_verdicts_of_word_errors(tmp_path):
    found = asked(compared_in(write_run(tmp_path / "run", words_study())))
    assert list(found) == [
        (OWN_CLIPS, "myqasr/cosine", "myqasr/cosine, others' clips"),
        (LAYERS, "myqasr/cosine", "uniform/cosine"),
        (COST, "myqasr/cosine", "full precision"),
    ]
    layers = found[LAYERS, "myqasr/cosine", "uniform/cosine"].result
    assert (layers.difference, layers.verdict) == (-0.4, "better")
    own = found[OWN_CLIPS, "myqasr/cosine", "myqasr/cosine, others' clips"]
    assert own.result.difference == 0
    assert own.sentence().startswith(
        "myqasr/cosine tuned on own clips and myqasr/cosine tuned on others' clips cannot be told"
    )


def test_a_greater_accuracy_is_a_positive_difference(tmp_path):
    found = asked(compared_in(write_run(tmp_path / "run", clips_study())))
    own = found[OWN_CLIPS, "myqasr/cosine", "myqasr/cosine, others' clips"].result
    # 10 of 12 clips right with own models; 16 of 24 with those of the two others.
    assert round(own.difference, 4) == round(10 / 12 - 16 / 24, 4)
    assert own.low <= own.difference <= own.high


def test_controls_and_calibrations(tmp_path):
    models = [
        model("a", method, "" if method == "uniform/none" else "a", counts, [10] * 4)
        for method, counts in {
            "myqasr/minmax": [4, 4, 4, 4],
            "myqasr/cosine": [2, 2, 2, 2],
            "shuffled/cosine": [8, 8, 8, 8],
            "reversed/minmax": [4, 4, 4, 4],
            "linear/minmax": [3, 3, 3, 3],
            "uniform/none": [9, 9, 9, 9],
            "uniform/cosine": [6, 6, 6, 6],
        }.items()
    ]
    found = asked(compared_in(write_run(tmp_path / "run", models)))
    assert [(question, *names) for question, *names in found] == [
        (LAYERS, "myqasr/cosine", "uniform/cosine"),
        (ORDER, "myqasr/cosine", "shuffled/cosine"),
        (ORDER, "myqasr/minmax", "reversed/minmax"),
        (WAY, "myqasr/minmax", "linear/minmax"),
        (CALIBRATION, "uniform/cosine", "uniform/none, no clips"),
        (CALIBRATION, "myqasr/cosine", "myqasr/minmax"),
    ]


def test_an_exported_file_is_compared_with_its_emulation(tmp_path):
    models = [
        model("a", "myqasr/dynamic", "a", [2, 2, 2, 2], [10] * 4),
        model("a", "uniform/dynamic", "a", [6, 6, 6, 6], [10] * 4),
    ]
    for method, counts in (("myqasr/onnx", [3, 3, 3, 3]), ("uniform/onnx", [7, 7, 7, 7])):
        row, plan = model("a", method, "a", counts, [10] * 4)
        models.append((replace(row, calibration="-", runtime="onnx", format="onnx"), plan))
    found = asked(compared_in(write_run(tmp_path / "run", models)))
    assert [(question, *names) for question, *names in found] == [
        (LAYERS, "myqasr/dynamic", "uniform/dynamic"),
        (LAYERS, "myqasr/onnx", "uniform/onnx"),
        (RUNTIME, "uniform/onnx", "uniform/dynamic"),
        (RUNTIME, "myqasr/onnx", "myqasr/dynamic"),
    ]
    worse = found[RUNTIME, "myqasr/onnx", "myqasr/dynamic"].result
    assert round(worse.difference, 4) == 0.1


def test_nothing_is_compared_without_counts_of_clips(tmp_path):
    models = [
        model("a", m, "a", [1, 2], [9, 9], study=False) for m in ("uniform/minmax", "myqasr/minmax")
    ]
    path = write_run(tmp_path / "run", models)
    assert compared_in(path) == []
    (line, _) = lines_in(path)
    assert (line.rate.low, line.rate.high) == (100 * line.rows[0].low, 100 * line.rows[0].high)


def test_clients_that_only_one_side_has_are_left_out(tmp_path):
    models = [m for m in words_study() if (m[0].client, m[0].method) != ("bob", "fp32")]
    found = asked(compared_in(write_run(tmp_path / "run", models)))
    # of ann alone: 8 of 40 words against 2 of 40
    assert round(found[COST, "myqasr/cosine", "full precision"].result.difference, 4) == 0.15


def test_few_answers_are_sentences_and_many_are_counted(tmp_path):
    answers = dict(findings.answers(compared_in(write_run(tmp_path / "run", words_study()))))
    assert answers[LAYERS.text] == [
        "myqasr/cosine is better than uniform/cosine by 40.0 points of WER"
        " (95 % interval 40.0 to 40.0)."
    ]
    cells = [(float(n), words_study(float(n))) for n in (30, 35, 40, 45)]
    compared = compared_in(write_matrix(tmp_path / "matrix", "clients.budget_mb", cells))
    assert dict(findings.answers(compared)) == {
        OWN_CLIPS.text: [
            "None of 4 comparisons could tell own clips apart from the clips of others."
        ],
        LAYERS.text: [
            "A depth for each layer came out better than one depth for all in 4 of 4 comparisons."
        ],
        COST.text: [
            "The compressed model came out worse than full precision in 4 of 4 comparisons."
        ],
    }
    assert compared[0].sentence().startswith("30 MB: myqasr/cosine")


def test_values_of_a_setting_are_compared_with_the_first(tmp_path):
    cells = [(bits, words_study(worse=worse)) for bits, worse in ((4, 2), (6, 1), (8, 0))]
    compared = compared_in(write_matrix(tmp_path / "run", "quantization.activation_bits", cells))
    found = [c for c in compared if "activation bits" in c.pair.question.text]
    assert [(c.pair.names, round(c.result.difference, 4)) for c in found] == [
        (("myqasr/cosine, activation bits 6", "myqasr/cosine, activation bits 4"), -0.1),
        (("myqasr/cosine, activation bits 8", "myqasr/cosine, activation bits 4"), -0.2),
    ]
    sentence = found[1].sentence()
    bits = "myqasr/cosine with activation bits"
    assert sentence.startswith(f"{bits} 8 is better than {bits} 4 by 20.0 points of WER")


def test_seeds_test_other_clips_and_are_not_compared(tmp_path):
    cells = [(1, words_study()), (2, words_study(worse=2))]
    compared = compared_in(write_matrix(tmp_path / "run", "seed", cells))
    assert {c.pair.settings for c in compared} == {"seed 1", "seed 2"}


def test_an_ascending_order_is_a_control(tmp_path):
    models = [
        model("a", "myqasr/cosine", "a", [2, 2], [10, 10]),
        model("a", "myqasr-asc/cosine", "a", [4, 4], [10, 10]),
    ]
    models[1] = (replace(models[1][0], allocation="myqasr"), models[1][1])
    assert [key[0] for key in asked(compared_in(write_run(tmp_path / "run", models)))] == [ORDER]


def test_the_headline_names_full_precision_and_the_best(tmp_path):
    first, second = findings.headline(lines_in(write_run(tmp_path / "run", words_study())))
    assert first.startswith("Full precision (275.0 MB): WER 3.8 % (95 % interval ")
    assert second.startswith("The lowest WER of 3 compressed models: 20.0 % (95 % interval 20.0")
    assert second.endswith(", myqasr/cosine tuned on own clips, 39.5 MB.")


def test_lines_in_words(tmp_path):
    lines = lines_in(write_run(tmp_path / "run", clips_study()))
    assert [(line.name, line.phrase) for line in lines] == [
        ("uniform/none, no clips", "uniform/none tuned on no clips"),
        ("myqasr/cosine, own clips", "myqasr/cosine tuned on own clips"),
        ("myqasr/cosine, others' clips", "myqasr/cosine tuned on others' clips"),
    ]


def test_an_accuracy_has_an_interval_within_its_bounds(tmp_path):
    for line in lines_in(write_run(tmp_path / "run", clips_study())):
        assert 0 <= line.rate.low <= line.rate.value <= line.rate.high <= 100


def test_numbers_in_words():
    assert Rate("WER", 12.34, 8.0, 17.06).text() == "12.3 [8.0, 17.1]"
    assert Rate("WER", None, None, None).text() == "-"
    assert [findings.points(x) for x in (0.0123, -0.004, -0.0001)] == ["+1.2", "−0.4", "0.0"]
    assert (span([1.0, 1.04]), span([1.0, 2.5])) == ("1.0", "1.0–2.5")
    assert (size_digits([275.0, 1.0]), size_digits([9.9]), size_digits([])) == (1, 2, 2)


def test_a_finding_in_everyday_words(tmp_path):
    """4 of 4 clips right against 1 of 4, of each of three speakers; then errors in characters."""
    wrong = {"myqasr/cosine": [0, 0, 0, 0], "uniform/cosine": [1, 1, 1, 0]}
    models = [model(c, m, c, counts) for c in "abc" for m, counts in wrong.items()]
    (run,) = read_runs([write_run(tmp_path / "run", models)])
    assert findings.finding(run.parts).startswith(
        "Of 100 clips, myqasr/cosine recognizes 75.0 more than uniform/cosine (95 % interval "
    )
    turned = {"myqasr/cosine": [5, 5, 5, 5], "uniform/cosine": [1, 1, 1, 1]}
    models = [model(c, m, c, counts, [10] * 4) for c in "abc" for m, counts in turned.items()]
    (run,) = read_runs([write_run(tmp_path / "worse", models)])
    assert findings.finding(run.parts) == (
        "Of 100 words, myqasr/cosine makes 40.0 more errors than uniform/cosine"
        " (95 % interval 40.0 to 40.0)."
    )


def test_a_claim_of_nothing_but_full_precision(tmp_path):
    """At one rate, at rates that differ between parts, and where there is nothing to count."""
    full = [model("a", "fp32", "", [1, 0], [10, 10])]
    (run,) = read_runs([write_run(tmp_path / "one", full)])
    assert findings.finding(run.parts).startswith("Full precision (275.0 MB): WER 5.0 %")
    cells = [(2, full), (8, [model("a", "fp32", "", [1, 1], [10, 10])])]
    (run,) = read_runs([write_matrix(tmp_path / "two", "corpus.tuning_clips", cells)])
    assert findings.finding(run.parts) == "2 results of full precision: WER 5.0–10.0 %."
    row, plan = full[0]
    empty = [(replace(row, words=0, errors=0, wer=None), replace(plan, of=(), wrong=()))]
    (run,) = read_runs([write_run(tmp_path / "none", empty)])
    assert findings.claim(run.parts) is None
    assert findings.finding(run.parts).startswith("No test clip")
