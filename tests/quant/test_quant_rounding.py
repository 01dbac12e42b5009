"""Compensated rounding against a plain GPTQ loop, and what it is worth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding_toys import (
    GRANULARITIES,
    GROUP,
    every_format,
    inputs,
    moments_of,
    numbers,
    output_error,
    thorough,
    weights,
)

from fedsim.errors import FedsimError
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.moments import MIN_ROWS, LayerMoments
from fedsim.quant.packing import unpack
from fedsim.quant.rounding import ROUNDINGS
from fedsim.quant.rounding.compensated import DAMPING, WIDE, compensated, triangular
from fedsim.quant.rounding.independent import nearest, quantize_weight, round_weight, scaled
from fedsim.quant.rounding.plan import round_plan, without_moments
from fedsim.quant.rounding.scales import least_squares
from fedsim.quant.rounding.task import RoundingTask
from fedsim.quant.weights import PackedWeight, dequantize_weight


def codes_of(packed: PackedWeight) -> np.ndarray:
    n = packed.shape[0]
    count = int(np.prod(packed.shape))
    return unpack(packed.payload, packed.bits, count).reshape(n, -1).astype(np.int64)


def same(a: PackedWeight, b: PackedWeight) -> bool:
    zeros = a.zeros is b.zeros is None or np.array_equal(a.zeros, b.zeros)
    return (
        (a.shape, a.bits, a.format) == (b.shape, b.bits, b.format)
        and a.payload.tobytes() == b.payload.tobytes()
        and a.scales.tobytes() == b.scales.tobytes()
        and zeros
    )


def min_max(block: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of each row, from its ends and zero; the scale rounded up to float16."""
    low, high = np.minimum(block.min(1), 0), np.maximum(block.max(1), 0)
    wanted = (high - low) / (2**bits - 1)
    scale = wanted.astype(np.float16)
    below = scale < wanted
    scale[below] = np.nextafter(scale[below], np.float16(np.inf))
    scale = scale.astype(np.float64)
    scale[wanted == 0] = 1
    return scale, np.rint(-low / scale)


def gptq(
    w: np.ndarray, moments: np.ndarray, bits: int, how: WeightFormat, damping: float = DAMPING
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The textbook loop (Frantar et al. 2023, algorithm 1) for one matrix (N, K), in float64.

    The inverse of the damped moments, its upper Cholesky factor; column after column is rounded,
    and its error, divided by the factor's diagonal, goes to all columns behind it.
    """
    w = w.astype(np.float64)
    n, k = w.shape
    h = moments.astype(np.float64)
    mean = np.diag(h).mean()
    h = h + (damping * mean if mean > 0 else 1.0) * np.eye(k)
    inverse = np.linalg.cholesky(np.linalg.inv(h)).T  # upper: inverse of h = U^T U
    group = GROUP.get(how.granularity)
    if group is not None and group >= k:
        group = None  # one group is a channel
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    codes = np.empty((n, k), np.int64)
    scales, zeros = [], []
    if group is None:
        blocks = w.astype(np.float32)
        if how.granularity == "per_tensor":
            blocks = blocks.reshape(1, -1)
        found = least_squares(blocks, bits, zero_points=how.zero_points)
        scale, zero = (np.broadcast_to(v, n) for v in (found.scale, found.zero))
        scales, zeros = [found.scale], [found.zero]
    for j in range(k):
        if group is not None and j % group == 0:
            block = w[:, j : j + group]
            if how.zero_points:
                scale, zero = min_max(block, bits)
            else:
                scale = least_squares(block, bits, zero_points=False).scale
                zero = np.full(n, float(middle))
            scales.append(scale)
            zeros.append(zero)
        codes[:, j] = np.clip(np.rint(w[:, j] / scale) + zero, 0, top)
        error = (w[:, j] - scale * (codes[:, j] - zero)) / inverse[j, j]
        w[:, j + 1 :] -= error[:, None] * inverse[j, j + 1 :]
    return codes, np.stack(scales, axis=1), np.stack(zeros, axis=1)


def assert_textbook(task: RoundingTask, packed: PackedWeight, how: WeightFormat) -> None:
    assert task.moments is not None
    per_group = task.shape[0] // len(task.moments)
    matrix, codes = task.matrix(), codes_of(packed)
    if how.granularity == "per_tensor" and len(task.moments) > 1:
        raise ValueError("one scale for several loops: see the test of grouped convolutions")
    for g, moments in enumerate(task.moments):
        rows = slice(g * per_group, (g + 1) * per_group)
        q, scales, zeros = gptq(matrix[rows], moments, task.bits, how)
        np.testing.assert_array_equal(codes[rows], q)
        at = rows if packed.scales.shape[0] > 1 else slice(None)
        np.testing.assert_array_equal(packed.scales[at].astype(np.float64), scales)
        if how.zero_points:
            np.testing.assert_array_equal(packed.zeros[at], zeros)
        else:
            assert packed.zeros is None


SIZES = [(7, 33), (6, 96), (5, 130), (12, 31), (1, 70), (3, 1), (1, 1), (4, 200)]


@pytest.mark.parametrize("how", every_format(), ids=str)
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_are_those_of_the_textbook(bits, how):
    """Sizes that are no multiple of the blocks of columns or of a group, all in one call."""
    tasks = [
        RoundingTask(weights(n, k, seed=n), bits, moments_of(inputs(300, k, seed=k)))
        for n, k in SIZES
    ]
    for task, packed in zip(tasks, compensated(tasks, how), strict=True):
        assert_textbook(task, packed, how)


@pytest.mark.parametrize("how", every_format(), ids=str)
def test_codes_are_those_of_the_textbook_across_wide_blocks(how):
    k = 2 * WIDE + 70
    task = RoundingTask(weights(3, k), 3, moments_of(inputs(400, k)))
    assert_textbook(task, compensated([task], how)[0], how)


def test_the_factor_is_triangular_and_gives_the_moments_back():
    k = 2 * WIDE + 70
    h = moments_of(inputs(700, k))[0].astype(np.float64)
    damped = h + DAMPING * np.diag(h).mean() * np.eye(k)
    (r,) = triangular([h])
    np.testing.assert_array_equal(r, np.triu(r))
    np.testing.assert_allclose(r @ r.T, damped, atol=1e-12 * np.abs(damped).max())


@thorough
@given(
    st.integers(1, 9),
    st.integers(1, 140),
    st.integers(2, 16),
    st.sampled_from(every_format()),
    st.integers(1, 200),
    st.integers(0, 99),
)
def test_codes_are_those_of_the_textbook_whatever_the_size(n, k, bits, how, n_inputs, seed):
    """Fewer inputs than columns too: the damping makes the moments regular."""
    task = RoundingTask(weights(n, k, seed=seed), bits, moments_of(inputs(n_inputs, k, seed)))
    assert_textbook(task, compensated([task], how)[0], how)


@pytest.mark.parametrize("bits", [2, 3, 5])
@pytest.mark.parametrize("how", every_format(), ids=str)
def test_each_group_of_a_convolution_is_a_layer_of_its_own(how, bits):
    groups, per_group, k = 4, 6, 8 * 5
    w = weights(groups * per_group, 8, 5, seed=4)
    moments = moments_of(*[inputs(200, k, seed=g) for g in range(groups)])
    task = RoundingTask(w, bits, moments)
    (packed,) = compensated([task], how)
    assert packed.shape == (24, 8, 5)
    if how.granularity != "per_tensor":
        assert_textbook(task, packed, how)
        return
    # One scale for all: that of the whole weight, so the groups cannot be rounded apart.
    blocks = w.numpy().reshape(1, -1)
    found = least_squares(blocks, bits, zero_points=how.zero_points)
    assert packed.scales.astype(float).tolist() == [found.scale.tolist()]
    for g in range(groups):
        rows = slice(g * per_group, (g + 1) * per_group)
        part = RoundingTask(w, bits, moments[g : g + 1])  # all rows with the moments of one group
        whole, *_ = gptq(part.matrix(), moments[g], bits, how)
        np.testing.assert_array_equal(codes_of(packed)[rows], whole[rows])


def mixed_tasks() -> list[RoundingTask]:
    """Several shapes in no order, depths that differ within a shape, some without moments."""
    shapes = [(8, 40), (6, 4, 10), (8, 40), (5, 7), (8, 40), (5, 7), (8, 40), (6, 4, 10)]
    tasks = []
    for i, shape in enumerate(shapes):
        k = int(np.prod(shape[1:]))
        groups = 2 if len(shape) == 3 else 1
        moments = moments_of(*[inputs(100, k, seed=i + 50 * g) for g in range(groups)])
        tasks.append(RoundingTask(weights(*shape, seed=i), 2 + i % 5, None if i == 4 else moments))
    return tasks


@pytest.mark.parametrize("how", every_format(), ids=str)
def test_a_task_is_rounded_alike_in_any_company(how):
    tasks = mixed_tasks()
    together = compensated(tasks, how)
    for task, packed in zip(tasks, together, strict=True):
        assert same(compensated([task], how)[0], packed)
    for packed, other in zip(compensated(tasks[::-1], how), together[::-1], strict=True):
        assert same(packed, other)
    # In pieces of any size: rows of a weight, and layers that are worked on together.
    for rows, batch_bytes in ((1, 1), (3, 1 << 16), (4, 20_000), (1000, 1)):
        pieces = compensated(tasks, how, rows=rows, batch_bytes=batch_bytes)
        assert all(same(a, b) for a, b in zip(pieces, together, strict=True))


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize("how", every_format(), ids=str)
def test_every_rounding_keeps_the_order_of_its_tasks(name, how):
    tasks = mixed_tasks()
    found = ROUNDINGS[name].round(tasks, how)
    assert [(one.shape, one.bits, one.format) for one in found] == [
        (task.shape, task.bits, how) for task in tasks
    ]
    for task, packed in zip(tasks, found, strict=True):
        assert same(ROUNDINGS[name].round([task], how)[0], packed)
    assert ROUNDINGS[name].round([], how) == []


def test_the_result_depends_on_no_number_of_threads():
    tasks = [
        RoundingTask(weights(150, 300, seed=i), 3, moments_of(inputs(400, 300, seed=i)))
        for i in range(2)
    ]
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(compensated(tasks, WeightFormat("group_64", True)))
        finally:
            torch.set_num_threads(before)
    assert all(same(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("how", every_format(), ids=str)
def test_moments_of_nothing_and_of_one_input(how):
    """Zeros leave nothing to make good; one input, or equal ones, are as singular as can be."""
    w = weights(6, 70)
    (silent,) = compensated([RoundingTask(w, 3, np.zeros((1, 70, 70), np.float32))], how)
    if how.zero_points and how.granularity in ("group_32", "group_64"):
        assert same(silent, nearest([RoundingTask(w, 3)], how)[0])
    else:
        assert same(silent, scaled([RoundingTask(w, 3)], how)[0])
    for x in (inputs(1, 70), np.ones((40, 70), np.float32), np.eye(1, 70, dtype=np.float32)):
        task = RoundingTask(w, 3, moments_of(x))
        (packed,) = compensated([task], how)
        assert_textbook(task, packed, how)
        assert np.isfinite(numbers(packed)).all()


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite(name, bad):
    w = weights(4, 40)
    w[2, 17] = bad
    task = RoundingTask(w, 4, moments_of(inputs(100, 40)))
    for how in every_format():
        with pytest.raises(FedsimError, match=r"is NaN or infinite: .*; download or export it"):
            ROUNDINGS[name].round([task], how)


@pytest.mark.parametrize("how", every_format(), ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_compensation_lowers_the_error_of_the_output(bits, how):
    """On the inputs of the moments, at a realistic size: without exception (280 of 280, 2 to 16
    bits). It is greedy, so that it may lose where there are few weights: see below."""
    for seed in range(4):
        x = inputs(500, 96, seed)
        task = RoundingTask(weights(64, 96, seed=seed), bits, moments_of(x))
        plain, better = scaled([task], how)[0], compensated([task], how)[0]
        assert output_error(task, better) < output_error(task, plain)
        # The moments stand for the inputs: the same, input by input.
        w = task.matrix().astype(np.float64)
        by_hand = [((x @ (w - numbers(p)).T) ** 2).sum(1).mean() for p in (plain, better)]
        assert by_hand[1] < by_hand[0]
        assert by_hand[1] == pytest.approx(output_error(task, better), rel=1e-4)


def test_where_compensation_does_not_pay():
    """Up to four rows of up to eight columns: about one in 25 has the larger error."""
    rng = np.random.default_rng(0)
    tasks = []
    for seed in range(300):
        n, k = int(rng.integers(1, 5)), int(rng.integers(1, 9))
        tasks.append(RoundingTask(weights(n, k, seed=seed), 3, moments_of(inputs(50, k, seed))))
    how = WeightFormat("per_channel")
    found = zip(tasks, scaled(tasks, how), compensated(tasks, how), strict=True)
    worse = [output_error(task, b) > output_error(task, a) for task, a, b in found]
    assert 0 < np.mean(worse) < 0.1


def test_a_plan_rounds_each_layer_at_its_depth():
    layers = (
        Layer("a", "linear", (6, 40)),
        Layer("b", "embedding", (9, 8)),
        Layer("c", "linear", (6, 40)),
        Layer("d", "conv1d", (4, 5, 3)),
    )
    full = {layer.name: weights(*layer.shape, seed=i) for i, layer in enumerate(layers)}
    known = {
        "a": LayerMoments(moments_of(inputs(100, 40)), 100),
        "c": LayerMoments(moments_of(inputs(31, 40, 1)), MIN_ROWS - 1),
        "d": LayerMoments(moments_of(inputs(100, 15, 2)), MIN_ROWS),
    }
    how, bits = WeightFormat("per_channel"), (3, 4, 5, 2)
    packed = round_plan(full, layers, bits, "compensated", how, known)
    assert [one.bits for one in packed] == list(bits)
    for layer, depth, one in zip(layers, bits, packed, strict=True):
        bare = layer.name in "bc"  # looks rows up; saw too little
        task = RoundingTask(full[layer.name], depth, None if bare else known[layer.name].mean)
        assert same(one, (scaled if bare else compensated)([task], how)[0])
    assert without_moments(layers, "compensated", known) == ("b", "c")
    for name, function in (("nearest", nearest), ("scaled", scaled)):
        assert without_moments(layers, name, known) == ()
        for layer, depth, one in zip(
            layers, bits, round_plan(full, layers, bits, name, how, known), strict=True
        ):
            assert same(one, function([RoundingTask(full[layer.name], depth)], how)[0])


@thorough
@given(st.integers(1, 6), st.integers(1, 140), st.integers(2, 16), st.sampled_from(GRANULARITIES))
def test_nearest_is_that_of_the_paper(n, k, bits, granularity):
    """S = max|W| / (2^(b-1) - 1), rounded up to float16; the nearest code. Written out plainly."""
    w = weights(n, k, seed=k)
    packed = quantize_weight(w, bits, WeightFormat(granularity))
    size = GROUP.get(granularity, k)
    values = w.numpy().astype(np.float64)
    top = 2 ** (bits - 1) - 1
    for g, start in enumerate(range(0, k, size)):
        for row in range(n):
            block = values[row, start : start + size]
            largest = np.abs(values if granularity == "per_tensor" else block).max()
            scale = float(packed.scales[0 if granularity == "per_tensor" else row, g])
            assert largest / top <= scale
            assert np.nextafter(np.float16(scale), np.float16(0)) < max(largest / top, 2e-38)
            codes = codes_of(packed)[row, start : start + size] - 2 ** (bits - 1)
            assert np.abs(codes).max() <= top
            # Codes are computed in float32: within a thousandth of a step of the middle, either.
            assert np.abs(codes - block / scale).max() <= 0.5 + 2.0**bits * 1e-6


@thorough
@given(st.integers(1, 6), st.integers(1, 140), st.integers(2, 16), st.sampled_from(every_format()))
def test_rounding_alone_is_packing_and_unpacking(n, k, bits, how):
    w = weights(n, k, seed=n)
    packed = quantize_weight(w, bits, how)
    assert torch.equal(round_weight(w, bits, how), dequantize_weight(packed))
    half = weights(n, k, 1, seed=n).half()
    assert torch.equal(
        round_weight(half, bits, how), dequantize_weight(quantize_weight(half, bits, how))
    )


def test_moments_that_no_inputs_have():
    """Finite and symmetric, but not positive semidefinite, as a forged file in the cache may be."""
    moments = np.diag([1.0, -5.0, 1.0])[None].astype(np.float32)
    with pytest.raises(FedsimError, match=r"not positive semidefinite.*cache folder"):
        compensated([RoundingTask(torch.ones(4, 3), 3, moments)], WeightFormat("per_channel"))
