from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quant_toys import rounded, thorough

from fedsim.quant.activations import Range, make_range, quantize_activation

ENDS = st.floats(-1e4, 1e4, width=32, allow_subnormal=False).filter(
    lambda v: v == 0 or abs(v) > 1e-6
)


def test_by_hand():
    # 4 bits over -1 .. 2: S = 3 / 15 = 0.2, Z = round(-1 / 0.2) = -5, codes 0 .. 15.
    rng = make_range(-1.0, 2.0)
    assert rng.scale(4) == pytest.approx(0.2)
    assert rng.zero_point(4) == 5
    x = torch.tensor([-3.0, -1.0, -0.13, 0.0, 0.29, 0.31, 1.99, 2.0, 9.0])
    expected = [-1.0, -1.0, -0.2, 0.0, 0.2, 0.4, 2.0, 2.0, 2.0]
    assert quantize_activation(x, rng, 4).tolist() == pytest.approx(expected)


@thorough
@given(ENDS, ENDS, st.integers(4, 16), st.integers(0, 2**32 - 1))
def test_the_papers_formula(a, b, bits, seed):
    low, high = min(a, b), max(a, b)
    rng = make_range(low, high)
    assert rng == Range(min(low, 0.0), max(high, 0.0))
    if rng.low == rng.high:
        return
    # To the ends and beyond them; values at half a step may round either way, so they are moved
    # off.
    x = np.random.default_rng(seed).uniform(rng.low * 1.5, rng.high * 1.5, 200).astype(np.float32)
    step = (rng.high - rng.low) / (2**bits - 1)
    off = x.astype(np.float64) / step % 1
    x = x[np.abs(off - 0.5) > 0.02 * max(1, 2.0 ** (bits - 12))]
    ours = quantize_activation(torch.from_numpy(x), rng, bits).double().numpy()
    np.testing.assert_allclose(
        ours, rounded(x, rng.low, rng.high, bits), rtol=1e-6, atol=1e-5 * step
    )
    levels = np.unique(np.round(ours / step))
    assert levels.max() - levels.min() <= 2**bits - 1


@thorough
@given(ENDS, ENDS, st.integers(4, 16), st.integers(0, 2**32 - 1))
def test_to_the_bit_what_torchs_own_kernel_answers(a, b, bits, seed):
    rng = make_range(min(a, b), max(a, b))
    scale, zero, top = rng.scale(bits), rng.zero_point(bits), 2**bits - 1
    spread = np.random.default_rng(seed).normal(0, rng.high - rng.low, 300)
    halves = (np.arange(300) - 150.5) * scale  # where rounding has to choose
    x = torch.from_numpy(
        np.concatenate([spread, halves, [rng.low, 0.0, rng.high]], dtype=np.float32)
    )
    expected = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, top)
    assert torch.equal(quantize_activation(x, rng, bits), expected)


@thorough
@given(ENDS, ENDS, st.integers(4, 16))
def test_zero_is_exact(a, b, bits):
    zero = quantize_activation(torch.zeros(3, 2), make_range(min(a, b), max(a, b)), bits)
    assert torch.equal(zero, torch.zeros(3, 2))


@thorough
@given(ENDS, ENDS, st.integers(4, 16))
def test_inside_the_range_the_error_is_at_most_half_a_step(a, b, bits):
    rng = make_range(min(a, b), max(a, b))
    x = torch.linspace(rng.low, rng.high, 301)
    step = (rng.high - rng.low) / (2**bits - 1)
    error = (quantize_activation(x, rng, bits) - x).abs()
    # Rounding the zero point moves the grid by half a step: an end may miss by a whole one.
    assert float(error.max()) <= step * 1.001 + 1e-6 * (rng.high - rng.low)
    inner = (x >= rng.low + step / 2) & (x <= rng.high - step / 2)
    if bool(inner.any()):
        slack = step * 0.501 + 1e-6 * (rng.high - rng.low)
        assert float(error[inner].max()) <= slack


def test_range_is_widened_to_hold_zero():
    assert make_range(2.0, 5.0) == Range(0.0, 5.0)
    assert make_range(-5.0, -2.0) == Range(-5.0, 0.0)
    assert make_range(-5.0, 2.0) == Range(-5.0, 2.0)
    one_sided = quantize_activation(torch.tensor([0.0, 2.0, 5.0]), make_range(2.0, 5.0), 8)
    assert one_sided.tolist() == pytest.approx([0.0, 2.0, 5.0], abs=5 / 255 / 2)
    negative = quantize_activation(torch.tensor([-5.0, -2.0, 0.0]), make_range(-5.0, -2.0), 8)
    assert negative.tolist() == pytest.approx([-5.0, -2.0, 0.0], abs=5 / 255 / 2)


def test_degenerate_range():
    for bits in (4, 8, 16):
        rng = make_range(0.0, 0.0)
        assert rng.scale(bits) > 0
        assert torch.equal(quantize_activation(torch.zeros(4), rng, bits), torch.zeros(4))
        tiny = make_range(-1e-44, 1e-44)  # below float32's normal numbers: must not become NaN
        x = torch.tensor([0.0, 1e-44, 1.0])
        assert torch.isfinite(quantize_activation(x, tiny, bits)).all()


def test_a_range_is_what_float32_can_hold():
    rng = make_range(-0.1, 1 / 3)
    assert (rng.low, rng.high) == (float(np.float32(-0.1)), float(np.float32(1 / 3)))


def test_shape_is_kept():
    x = torch.randn(2, 3, 5)
    assert quantize_activation(x, make_range(-1, 1), 8).shape == x.shape
    assert quantize_activation(x[:, :0], make_range(-1, 1), 8).shape == (2, 0, 5)
