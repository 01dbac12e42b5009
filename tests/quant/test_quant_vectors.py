"""Inputs quantized over the range of each vector, against the formula in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding_toys import thorough

from fedsim.quant.activations import (
    FLOAT,
    InputFormat,
    make_range,
    quantize_activation,
    quantize_input,
    quantize_vectors,
)


def noise(*shape: int, seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(shape, generator=generator)


@thorough
@given(
    st.lists(st.integers(1, 4), max_size=2),
    st.integers(1, 60),
    st.integers(4, 16),
    st.sampled_from([1e-20, 1e-3, 1.0, 1e4]),
    st.sampled_from([-5.0, 0.0, 5.0]),
    st.integers(0, 99),
)
def test_each_vector_has_a_range_of_its_own(leading, k, bits, spread, shift, seed):
    x = spread * (noise(*leading, k, seed=seed) + shift)
    found = quantize_vectors(x, bits)
    assert found.shape == x.shape
    assert found.dtype == torch.float32
    for row, back in zip(x.reshape(-1, k), found.reshape(-1, k), strict=True):
        values = row.double().numpy()
        low, high = min(values.min(), 0.0), max(values.max(), 0.0)
        scale = (high - low) / (2**bits - 1)
        zero = np.round(-low / scale)
        steps = back.double().numpy() / scale
        # Whole steps, as many as there are codes, and the nearest to the input.
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-6 * 2**bits + 1e-6)
        assert -zero - 1e-2 <= steps.min()
        assert steps.max() <= 2**bits - 1 - zero + 1e-2
        wanted = np.clip(values / scale, -zero, 2**bits - 1 - zero)
        assert np.abs(steps - wanted).max() <= 0.5 + 2.0**bits * 1e-6


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_vectors_do_not_meet(bits):
    x = noise(3, 7, 20) * torch.logspace(-3, 3, 7)[:, None]
    found = quantize_vectors(x, bits)
    for i in range(3):
        for j in range(7):
            assert torch.equal(quantize_vectors(x[i, j], bits), found[i, j])
    untouched = x.clone()
    quantize_vectors(x, bits)
    assert torch.equal(x, untouched)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_zero_is_exact_and_silence_stays_silent(bits):
    x = noise(5, 30) + 2
    x[:, ::3] = 0
    x[2] = 0
    found = quantize_vectors(x, bits)
    assert (found[:, ::3] == 0).all()
    assert (found[2] == 0).all()
    for value in (3.0, -3.0, 1e-30, -1e-38, 3e38):  # one end of the range, which is a code
        same = torch.full((2, 4), value)
        torch.testing.assert_close(quantize_vectors(same, bits), same, rtol=1e-6, atol=1e-38)
    tiny = torch.tensor([[1e-44, -1e-45, 0.0]])
    assert (quantize_vectors(tiny, bits).abs() < 1e-37).all()


def test_what_is_not_finite_stays_in_its_vector():
    x = noise(3, 10)
    x[1, 4] = torch.nan
    found = quantize_vectors(x, 8)
    assert found[1].isnan().any()
    assert torch.equal(found[[0, 2]], quantize_vectors(x[[0, 2]], 8))


def test_how_an_input_is_quantized():
    x = noise(4, 9)
    rng = make_range(-1.0, 2.0)
    assert quantize_input(x, FLOAT) is x
    assert quantize_input(x, InputFormat(0, rng)) is x
    assert torch.equal(quantize_input(x, InputFormat(6)), quantize_vectors(x, 6))
    assert torch.equal(quantize_input(x, InputFormat(6, rng)), quantize_activation(x, rng, 6))


def test_a_range_for_each_vector_is_worth_more_than_one_for_all():
    """As with a token whose feed-forward input is a hundred times that of the others."""
    x = noise(50, 64)
    x[7] *= 200
    static = quantize_activation(x, make_range(float(x.min()), float(x.max())), 8)
    quiet = torch.arange(50) != 7
    errors = [float((y - x)[quiet].square().mean()) for y in (static, quantize_vectors(x, 8))]
    assert errors[1] < errors[0] / 1000
