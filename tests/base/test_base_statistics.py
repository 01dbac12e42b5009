"""Intervals and verdicts against numbers by hand, scipy, and simulated clients of known rates."""

import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats

from fedsim.base.agreement import flip_share, rank_correlation
from fedsim.base.statistics import (
    MAX_CLIPS,
    ClipCounts,
    Comparison,
    Interval,
    clips_to_settle,
    compare,
    rate,
)
from fedsim.errors import FedsimError

TRUE_RATE = 0.2
FEW = 400
"""Resamples in simulations: the ends of an interval then vary by a tenth of its width."""


def rng(*seed):
    return np.random.default_rng(seed)


def counts(wrong, of):
    """Counts of clients `c0000`, ...; a row of clips each."""
    return [
        ClipCounts(f"c{k:04}", np.asarray(w, np.int64), np.asarray(o, np.int64))
        for k, (w, o) in enumerate(zip(wrong, of, strict=True))
    ]


def spoken(chance, clients, clips):
    return chance.integers(3, 16, (clients, clips))


def heard(chance, of, client_rates):
    """Word errors: clips have rates of their own, with the client's as their mean."""
    rates = np.broadcast_to(np.reshape(client_rates, (-1, 1)), of.shape)
    return chance.binomial(of, chance.beta(4 * rates, 4 * (1 - rates)))


def spread(chance, clients, deviation):
    return math.sqrt(3) * deviation * chance.uniform(-1, 1, clients)


def two_models(chance, clients, clips, deviation, gain=0.0):
    """Errors of two models that make three errors of five alike; `gain` is the first's lower rate.

    Clients differ in how much either model suits them, by this standard deviation, 0 in the mean.
    """
    of = spoken(chance, clients, clips)
    suits = spread(chance, clients, deviation)
    alike = chance.random(of.shape) < 0.6
    shared = heard(chance, of, TRUE_RATE)
    errors = [
        np.where(alike, shared, heard(chance, of, TRUE_RATE + shift))
        for shift in (suits - gain / 0.8, gain / 0.8 - suits)
    ]
    return counts(errors[0], of), counts(errors[1], of)


def test_a_rate_is_all_errors_over_all_words():
    found = rate(counts([[1, 0], [9]], [[10, 50], [20]]), rng(0))
    assert found.value == 10 / 80  # the mean of the clients' rates would be 0.23
    assert found.low <= found.value <= found.high


def test_an_insertion_into_silence_counts():
    assert rate(counts([[2, 1, 1]], [[0, 10, 10]]), rng(0)).value == 4 / 20


def test_one_client_as_scipy_does_it():
    of = spoken(rng(1), 1, 40)
    wrong, of = heard(rng(2), of, TRUE_RATE)[0], of[0]
    reference = scipy.stats.bootstrap(
        (wrong, of),
        lambda w, o, axis: w.sum(axis=axis) / o.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=rng(3),
    ).confidence_interval
    found = rate(counts([wrong], [of]), rng(4), resamples=20_000)
    widen = 1.04515  # sqrt(40 / 39) * 2.02269 / 1.95996, from a table of Student's t
    width = reference.high - reference.low
    assert found.value - found.low == pytest.approx(
        widen * (found.value - reference.low), abs=0.012 * width
    )
    assert found.high - found.value == pytest.approx(
        widen * (reference.high - found.value), abs=0.012 * width
    )


def test_two_clients_by_hand():
    # Rates of 10 % and 30 %, the same in all clips: a resample of clients has 10, 20 or 30 %, the
    # percentiles are 10 and 30 %, and their distances grow by sqrt(2) * 12.7062 / 1.95996.
    found = rate(counts([[1, 2], [3, 6]], [[10, 20], [10, 20]]), rng(0))
    assert found.value == pytest.approx(0.2)
    assert found.high == pytest.approx(0.2 + 0.1 * 9.16817, abs=1e-5)
    assert found.low == 0  # a rate is not negative
    mirrored = compare(
        counts([[0, 0], [0, 0]], [[10, 20], [10, 20]]),
        counts([[1, 2], [3, 6]], [[10, 20], [10, 20]]),
        rng(0),
    )
    assert mirrored.difference == pytest.approx(-0.2)
    assert mirrored.low == pytest.approx(-0.2 - 0.1 * 9.16817, abs=1e-5)
    assert mirrored.high == pytest.approx(-0.2 + 0.1 * 9.16817, abs=1e-5)


def test_clients_that_happen_to_agree_still_have_clips_of_chance():
    half = [1] * 25 + [0] * 25
    found = rate(counts([half, half], np.ones((2, 50))), rng(0), resamples=10_000)
    # Standard error sqrt(0.25 / 100) = 0.05, widened by sqrt(100 / 99) * 1.98422 / 1.95996.
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.05 * 1.0175, rel=0.08)


@pytest.mark.parametrize(
    ("clients", "clips", "deviation"),
    [(24, 10, 0.1), (24, 10, 0.03), (24, 20, 0.0), (4, 20, 0.05), (1, 60, 0.0), (150, 1, 0.05)],
)
def test_the_interval_covers_the_true_rate(clients, clips, deviation):
    covered = []
    for seed in range(250):
        chance = rng(seed, clients, clips)
        of = spoken(chance, clients, clips)
        wrong = heard(chance, of, TRUE_RATE + spread(chance, clients, deviation))
        found = rate(counts(wrong, of), chance, resamples=FEW)
        covered.append(found.low <= TRUE_RATE <= found.high)
    assert 0.91 <= np.mean(covered) <= 0.98  # 0.95 has a standard error of 0.014


@pytest.mark.parametrize(
    ("clients", "clips", "deviation"), [(24, 10, 0.0), (24, 10, 0.1), (8, 10, 0.1), (1, 60, 0.0)]
)
def test_no_difference_is_seldom_called_one(clients, clips, deviation):
    verdicts = []
    for seed in range(250):
        chance = rng(seed, clients, clips, 1)
        found = compare(*two_models(chance, clients, clips, deviation), chance, resamples=FEW)
        verdicts.append(found.verdict)
    assert 0.9 <= verdicts.count("not distinguishable") / len(verdicts) <= 0.985
    assert {"better", "worse"} < set(verdicts)


def test_a_big_difference_is_found():
    verdicts = set()
    for seed in range(30):
        good, bad = two_models(rng(seed), 12, 20, 0.02, gain=0.07)
        found, turned = compare(good, bad, rng(seed)), compare(bad, good, rng(seed))
        assert found.low < -0.07 < 0 < turned.high
        assert (turned.difference, turned.more_clips) == (-found.difference, None)
        assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), rel=0.1)
        verdicts.add((found.verdict, turned.verdict))
    assert verdicts == {("better", "worse")}


def test_a_difference_by_hand():
    of = [[10, 30], [20], [40]]
    first = counts([[1, 3], [2], [4]], of)
    second = counts([[1, 4], [4], [6]], of)
    found = compare(first, second, rng(0))
    assert found.difference == pytest.approx(0.1 - 0.15)
    assert compare(second, first, rng(0)).difference == pytest.approx(0.05)


def test_shared_errors_narrow_the_interval():
    first, second = two_models(rng(7), 24, 20, 0.0)
    found = compare(first, second, rng(0))
    apart = [rate(first, rng(0)), rate(second, rng(1))]
    unpaired = math.hypot(*(one.high - one.low for one in apart))
    # The two share three errors of five: variance 0.4 of that of independent models.
    assert (found.high - found.low) / unpaired == pytest.approx(math.sqrt(0.4), rel=0.2)


def test_identical_models_differ_by_nothing():
    first, _ = two_models(rng(0), 3, 5, 0.0)
    assert compare(first, first, rng(0)) == Comparison(0, 0, 0, "not distinguishable", None)


def test_as_many_errors_elsewhere_is_no_difference_and_no_number_of_clips():
    found = compare(counts([[1, 0] * 20], [[5] * 40]), counts([[0, 1] * 20], [[5] * 40]), rng(0))
    assert (found.difference, found.verdict, found.more_clips) == (0, "not distinguishable", None)
    assert found.low < -0.05 < 0.05 < found.high


def test_one_error_in_one_client_is_no_difference():
    of = np.full((24, 40), 5)
    wrong = np.zeros_like(of)
    wrong[5, 7] = 1
    found = compare(counts(wrong, of), counts(np.zeros_like(of), of), rng(0))
    assert found.verdict == "not distinguishable"
    assert found.low <= 0 < found.difference


def test_more_clips_by_hand():
    # 0.03 reaches to the end beyond 0; 50 * (0.03 / 0.02 * 2.801585 / 1.959964) ** 2 = 229.87
    assert clips_to_settle(Interval(0.02, -0.01, 0.04), 50) == 180
    assert clips_to_settle(Interval(-0.02, -0.04, 0.01), 50) == 180
    assert clips_to_settle(Interval(0.02, -0.01, 0.09), 50) == 180  # the other end is of no matter
    # 50 * (0.02 / x * 1.4294) ** 2 passes 1,000,050 where x falls below 0.0002021.
    assert 980_000 < clips_to_settle(Interval(0.000203, 0.000203 - 0.02, 0.02), 50) <= MAX_CLIPS
    assert clips_to_settle(Interval(0.000201, 0.000201 - 0.02, 0.02), 50) is None
    assert clips_to_settle(Interval(0.0, -0.01, 0.01), 50) is None
    assert clips_to_settle(Interval(math.nan, math.nan, math.nan), 0) is None
    assert clips_to_settle(Interval(0.25, math.nan, math.nan), 1) is None


def test_more_clips_are_given_where_the_verdict_is_open_and_only_there():
    given = {}
    for seed in range(40):
        found = compare(*two_models(rng(seed), 6, 10, 0.02, 0.03), rng(seed), resamples=FEW)
        clips = clips_to_settle(Interval(found.difference, found.low, found.high), 60)
        is_open = found.verdict == "not distinguishable"
        assert found.more_clips == (clips if is_open else None)
        given[is_open] = found.more_clips
    assert set(given) == {True, False}
    assert given[False] is None


def test_four_studies_of_five_with_that_many_clips_settle_it():
    gain, clips = 0.02, 10
    wanted = []
    for seed in range(200):  # open studies whose observed difference is about the true one
        found = compare(*two_models(rng(seed), 16, clips, 0.02, gain), rng(seed), resamples=FEW)
        if found.more_clips is not None and abs(found.difference + gain) < 0.1 * gain:
            wanted.append(found.more_clips)
    assert len(wanted) >= 5
    clients = 16 + round(np.median(wanted) / clips)
    settled = []
    for seed in range(150):
        pair = two_models(rng(seed, 1), clients, clips, 0.02, gain)
        settled.append(compare(*pair, rng(seed), resamples=FEW).verdict == "better")
    assert 0.68 <= np.mean(settled) <= 0.92


def test_one_generator_one_result():
    first, second = two_models(rng(5), 6, 10, 0.02)
    assert rate(first, rng(1)) == rate(first, rng(1)) != rate(first, rng(2))
    assert compare(first, second, rng(1)) == compare(first, second, rng(1))
    assert rate(first[::-1], rng(1)) == rate(first, rng(1))
    assert compare(first[::-1], second, rng(1)) == compare(first, second, rng(1))


def test_resamples_in_batches_are_the_same():
    first, second = two_models(rng(5), 6, 10, 0.02)
    at_once = compare(first, second, rng(1), resamples=250)
    own = rate(first, rng(1), resamples=250)
    for batch in (601, 1):  # 10 resamples of 60 clips, 100 of 6 clients; one at a time
        assert compare(first, second, rng(1), resamples=250, batch=batch) == at_once
        assert rate(first, rng(1), resamples=250, batch=batch) == own


def test_memory_does_not_grow_with_clients():
    many, _ = two_models(rng(5), 1_000, 4, 0.02)
    rate(many, rng(0), resamples=1)  # scipy is imported
    tracemalloc.start()
    rate(many, rng(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 * 2**20  # 2,000 resamples of 4,000 clips at once would be 61 MB thrice


def test_nothing_to_count():
    for nothing in ([], counts([[]], [[]]), counts([[1, 2]], [[0, 0]])):
        found = rate(nothing, rng(0))
        assert np.isnan([found.value, found.low, found.high]).all()
        both = compare(nothing, nothing, rng(0))
        assert np.isnan([both.difference, both.low, both.high]).all()
        assert (both.verdict, both.more_clips) == ("not distinguishable", None)
        assert both.sentence("a", "b", "WER") == (
            "a and b cannot be told apart: there is nothing to count"
        )


def test_one_clip_has_a_rate_and_no_interval():
    found = rate(counts([[1]], [[4]]), rng(0))
    assert found.value == 0.25
    assert np.isnan([found.low, found.high]).all()
    both = compare(counts([[1]], [[4]]), counts([[0]], [[4]]), rng(0))
    assert (both.difference, both.verdict, both.more_clips) == (0.25, "not distinguishable", None)
    assert both.sentence("a", "b", "WER") == (
        "a and b cannot be told apart: difference 25.0 points of WER, but one clip has no interval"
    )


def test_a_client_without_clips_is_absent():
    some, _ = two_models(rng(5), 6, 10, 0.02)
    none = counts([[]], [[]])[0]
    assert rate([*some, ClipCounts("zz", none.wrong, none.of)], rng(1)) == rate(some, rng(1))


def test_resamples_without_words_are_left_out():
    found = rate(counts([[0, 2, 1]], [[0, 10, 0]]), rng(0))
    assert found.value == 0.3
    assert np.isfinite([found.low, found.high]).all()


def test_sentences():
    better = Comparison(-0.031, -0.05, -0.012, "better", None)
    assert better.sentence("myqasr/cosine", "uniform/cosine", "WER") == (
        "myqasr/cosine is better than uniform/cosine by 3.1 points of WER"
        " (95 % interval 1.2 to 5.0)"
    )
    worse = Comparison(0.031, 0.0004, 0.05, "worse", None)
    assert worse.sentence("a", "b", "CER") == (
        "a is worse than b by 3.10 points of CER (95 % interval 0.04 to 5.00)"
    )
    unclear = Comparison(0.002, -0.005, 0.009, "not distinguishable", 1_937)
    assert unclear.sentence("a", "b", "WER") == (
        "a and b cannot be told apart: difference 0.2 points of WER (−0.5 to 0.9);"
        " about 1,900 more clips would settle it"
    )
    hopeless = Comparison(-0.0001, -0.005, 0.005, "not distinguishable", None)
    assert hopeless.sentence("a", "b", "WER") == (
        "a and b cannot be told apart: difference 0.0 points of WER (−0.5 to 0.5)"
    )


def test_models_of_other_clients_or_clips_are_refused():
    one = counts([[1, 2], [0, 0]], [[5, 5], [6, 7]])
    for first, second in ((one, one[:1]), (one[:1], one)):
        with pytest.raises(FedsimError, match=r"'c0001' .*on the same clients"):
            compare(first, second, rng(0))
    with pytest.raises(FedsimError, match=r"'c0001' .* \(2 clips with 13 .* on the same clips"):
        compare(one, counts([[1, 2], [0]], [[5, 5], [13]]), rng(0))
    with pytest.raises(FedsimError, match=r"'c0001' .*on the same clips in the same order"):
        compare(one, counts([[1, 2], [0, 0]], [[5, 5], [7, 6]]), rng(0))
    for twice in (
        lambda: rate([*one, one[0]], rng(0)),
        lambda: compare(one, [*one, one[0]], rng(0)),
    ):
        with pytest.raises(FedsimError, match=r"'c0000' .*give each client once"):
            twice()


def test_counts_that_cannot_be_right_are_refused():
    with pytest.raises(ValueError, match=r"'c0000' have shapes \(2,\) and \(1,\)"):
        counts([[1, 2]], [[5]])
    with pytest.raises(ValueError, match="have shapes"):
        counts([[[1, 2]]], [[[5, 5]]])
    for wrong, of in (([-1, 2], [5, 5]), ([1, 2], [5, -5])):
        with pytest.raises(ValueError, match="'c0000' include a negative"):
            counts([wrong], [of])


def test_the_share_of_layers_that_flip():
    base = np.array([8, 4, 4, 2])
    plans = np.array([[8, 4, 4, 2], [4, 8, 4, 2], [8, 4, 4, 3]])
    assert flip_share(plans, base) == pytest.approx((0 + 2 + 1) / 12)


def test_rank_correlation_by_hand():
    base = np.array([0.1, 0.2, 0.5, 9.0])
    rows = np.array([[1, 2, 3, 4], [1, 2, 4, 3], [4, 3, 2, 1]])
    # 1 - 6 * sum(d ** 2) / (n * (n ** 2 - 1)): 1, 1 - 12 / 60, -1
    assert rank_correlation(rows, base) == pytest.approx((1 + 0.8 - 1) / 3)
    tied = rank_correlation(np.array([[5.0, 5.0, 6.0]]), np.array([1, 2, 3]))
    assert tied == pytest.approx(math.sqrt(3) / 2)  # ranks 1.5, 1.5, 3 against 1, 2, 3


@pytest.mark.filterwarnings("error")
def test_layers_that_are_all_equal_have_no_order():
    assert math.isnan(rank_correlation(np.array([[1, 2, 3], [7, 7, 7]]), np.array([1, 2, 3])))
    assert math.isnan(rank_correlation(np.array([[1, 2, 3]]), np.array([7, 7, 7])))


@pytest.mark.parametrize("measure", [flip_share, rank_correlation])
def test_plans_of_other_layers_are_refused(measure):
    for rows, base in (((3, 4), (3,)), ((4,), (4,)), ((0, 4), (4,)), ((3, 4), (3, 4))):
        with pytest.raises(ValueError, match="are not"):
            measure(np.ones(rows), np.ones(base))


def test_clients_that_are_no_sample_leave_the_clips_to_chance():
    """Two genders are all there are: their clips together are one sample."""
    rng = np.random.default_rng(1)
    wrong, of = rng.integers(0, 3, 60), rng.integers(3, 8, 60)
    halves = [ClipCounts("f", wrong[:30], of[:30]), ClipCounts("m", wrong[30:], of[30:])]
    whole = [ClipCounts("all", wrong, of)]
    fixed = rate(halves, np.random.default_rng(0), over_clients=False)
    assert fixed == rate(whole, np.random.default_rng(0))
    sampled = rate(halves, np.random.default_rng(0))
    assert sampled.high - sampled.low > fixed.high - fixed.low
    better = [ClipCounts(c.client, np.maximum(c.wrong - 1, 0), c.of) for c in halves]
    assert compare(better, halves, np.random.default_rng(0), over_clients=False).verdict == "better"
