"""How evenly the clients of a run are served: each client once, each clip beside full precision."""

from report_toys import clips_study, model, write_run

from fedsim.results.fairness import client_rates, fairness_of
from fedsim.results.rates import lines_of
from fedsim.results.runs import read_runs


def lines_in(path):
    (run,) = read_runs([path])
    return {line.name: line for part in run.parts for line in lines_of(part)}


def test_clients_and_clips_of_word_errors(tmp_path):
    """Two clients at 10 and 50 %, although together they make 14 errors in 100 words; of four
    clips the model leaves three no worse than full precision."""
    models = [
        model("a", "fp32", "", [4, 1], [45, 45]),
        model("a", "uniform/cosine", "a", [4, 5], [45, 45]),
        model("b", "fp32", "", [3, 3], [5, 5]),
        model("b", "uniform/cosine", "b", [3, 2], [5, 5]),
    ]
    lines = lines_in(write_run(tmp_path / "run", models))
    small = lines["uniform/cosine, own clips"]
    assert client_rates(small) == {"a": 10.0, "b": 50.0}
    assert small.rate.value == 14.0
    found = fairness_of(small)
    assert (found.over_clients.mean, found.over_clients.worst_tenth) == (30.0, 50.0)
    assert (found.over_clients.spread, found.no_worse) == (20.0, 75.0)
    assert fairness_of(lines["full precision"]).no_worse is None


def test_of_accuracies_the_lowest_is_the_worst(tmp_path):
    """Each client tests the models of two others: the lowest mean accuracy is 3 of 8 clips."""
    lines = lines_in(write_run(tmp_path / "run", clips_study()))
    found = fairness_of(lines["myqasr/cosine, others' clips"])
    assert found.over_clients.worst_tenth == 37.5
    assert found.no_worse is None  # there is nothing in full precision


def test_every_model_that_a_client_tests_is_beside_full_precision(tmp_path):
    models = [
        model("a", "fp32", "", [0, 1]),
        model("a", "myqasr/cosine", "b", [0, 0]),
        model("a", "myqasr/cosine", "c", [1, 1]),
        model("b", "myqasr/cosine", "a", [1, 1]),  # without full precision: it is left out
    ]
    lines = lines_in(write_run(tmp_path / "run", models))
    assert fairness_of(lines["myqasr/cosine, others' clips"]).no_worse == 75.0


def test_without_counts_of_clips_no_clip_is_compared(tmp_path):
    models = [
        model("a", method, "", [1, 2], [9, 9], study=False) for method in ("fp32", "uniform/none")
    ]
    found = fairness_of(lines_in(write_run(tmp_path / "run", models))["uniform/none, no clips"])
    assert (found.no_worse, found.over_clients.clients) == (None, 1)
