from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quant_toys import thorough

from fedsim.errors import FedsimError
from fedsim.quant.granularities import (
    GRANULARITIES,
    PER_CHANNEL,
    PER_TENSOR,
    WeightFormat,
    n_scales,
)
from fedsim.quant.packing import packed_bytes, unpack
from fedsim.quant.rounding.independent import quantize_weight, round_weight
from fedsim.quant.weights import dequantize_weight, signed_codes

BOTH = ("per_tensor", "per_channel")


def codes_of(packed):
    n = int(np.prod(packed.shape))
    signed = unpack(packed.payload, packed.bits, n).astype(int) - 2 ** (packed.bits - 1)
    return signed.reshape(packed.shape)


def test_per_tensor_by_hand():
    weight = torch.tensor([[0.7, -0.34, 0.05], [-0.26, 0.0, 0.31]])
    packed = quantize_weight(weight, 4, PER_TENSOR)
    # max|W| = 0.7, limit 2^3 - 1 = 7, S = 0.1: 7, -3.4, 0.5, -2.6, 0, 3.1. The half is a tie that
    # float32 may break either way (0.05 / 0.1), so it is left out.
    codes = codes_of(packed)
    assert packed.scales == pytest.approx([0.1])
    assert codes[0, :2].tolist() == [7, -3]
    assert codes[1].tolist() == [-3, 0, 3]
    back = dequantize_weight(packed)
    assert back[1].tolist() == pytest.approx([-0.3, 0.0, 0.3])


def test_per_channel_by_hand():
    weight = torch.tensor([[[0.75, -1.5]], [[24.0, 7.9]]])  # (2, 1, 2), as a convolution
    packed = quantize_weight(weight, 3, PER_CHANNEL)
    # limit 3: S = 0.5 and 8; W / S = 1.5 (to even: 2), -3, 3, 0.9875.
    assert packed.scales.tolist() == [0.5, 8.0]
    assert codes_of(packed).tolist() == [[[2, -3]], [[3, 1]]]
    assert dequantize_weight(packed).tolist() == [[[1.0, -1.5]], [[24.0, 8.0]]]
    assert packed.shape == (2, 1, 2)


def test_two_bits_are_minus_one_zero_one():
    packed = quantize_weight(torch.tensor([[-4.0, -1.9, 0.1, 2.1, 4.0]]), 2, PER_TENSOR)
    assert codes_of(packed).tolist() == [[-1, 0, 0, 1, 1]]


def test_same_grid_as_torch():
    weight = torch.randn(16, 9, generator=torch.Generator().manual_seed(3))
    for bits in (4, 8):
        limit = 2 ** (bits - 1) - 1
        scales = weight.abs().amax(1) / limit
        zeros = torch.zeros(16, dtype=torch.int32)
        torchs = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -limit, limit)
        ours = dequantize_weight(quantize_weight(weight, bits, PER_CHANNEL))
        torch.testing.assert_close(ours, torchs, rtol=1e-6, atol=0)


@st.composite
def weights(draw):
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=2, max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(
        -6, 6, (shape[0],) + (1,) * (len(shape) - 1)
    )
    values[rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0.0
    return torch.from_numpy(values.astype(np.float32))


@thorough
@given(weights(), st.integers(2, 16), st.sampled_from(BOTH))
def test_error_is_at_most_half_a_step(weight, bits, granularity):
    packed = quantize_weight(weight, bits, WeightFormat(granularity))
    back = dequantize_weight(packed).double().numpy()
    full = weight.double().numpy()
    assert back.shape == full.shape
    rows = np.abs(full).reshape(len(full), -1)
    top = rows.max(axis=1) if granularity == "per_channel" else np.full(len(full), rows.max())
    step = top / (2 ** (bits - 1) - 1)
    error = np.abs(back - full).reshape(len(full), -1)
    assert (error <= step[:, None] * (0.5 + 1e-5 * 2 ** max(0, bits - 10))).all()
    # No bit is bought that is not used: the largest weight of each scale is exact.
    at_top = np.abs(full).reshape(len(full), -1) == top[:, None]
    assert (error[at_top] <= 1e-6 * top.max()).all()
    assert (back[full == 0] == 0).all()
    assert packed.payload.nbytes == packed_bytes(full.size, bits)
    assert packed.scales.dtype == np.float32
    assert packed.scales.shape == ((len(full),) if granularity == "per_channel" else (1,))
    assert len(packed.scales) == n_scales(len(full), granularity)
    assert packed.nbytes == packed_bytes(full.size, bits) + 4 * len(packed.scales)


@thorough
@given(weights(), st.integers(2, 16), st.sampled_from(BOTH))
def test_quantizing_twice_changes_nothing(weight, bits, granularity):
    once = quantize_weight(weight, bits, WeightFormat(granularity))
    twice = quantize_weight(dequantize_weight(once), bits, WeightFormat(granularity))
    np.testing.assert_array_equal(twice.payload, once.payload)
    np.testing.assert_allclose(twice.scales, once.scales, rtol=1e-6)


@thorough
@given(weights(), st.integers(2, 16), st.sampled_from([8, 16, 72]))
def test_a_large_weight_is_unpacked_in_steps(weight, bits, step):
    """The same whatever the step, and wherever the last one ends."""
    packed = quantize_weight(weight, bits, PER_CHANNEL)
    whole = dequantize_weight(packed)
    per_row = packed.scales.reshape(-1, *[1] * (weight.ndim - 1))
    np.testing.assert_array_equal(whole, codes_of(packed).astype(np.float32) * per_row)
    assert torch.equal(dequantize_weight(packed, step=step), whole)
    signed = signed_codes(packed, np.int32, step=step)
    np.testing.assert_array_equal(signed, codes_of(packed))


def test_the_error_is_that_of_a_uniform_grid():
    for bits in range(2, 17):
        # The mean squared error is S^2 / 12, from 4 bits on.
        weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(bits))
        error = (dequantize_weight(quantize_weight(weight, bits, PER_TENSOR)) - weight).double()
        step = float(weight.abs().max()) / (2 ** (bits - 1) - 1)
        if bits >= 4:
            assert float(error.square().mean()) == pytest.approx(step**2 / 12, rel=0.05)
        assert float(error.abs().max()) <= step * 0.501 + 1e-7


def test_zero_channels():
    weight = torch.zeros(3, 4)
    weight[1] = torch.tensor([1.0, -1.0, 0.0, 1.0])
    for bits in (2, 8, 16):
        assert torch.equal(dequantize_weight(quantize_weight(weight, bits, PER_CHANNEL)), weight)
        nothing = dequantize_weight(quantize_weight(weight * 0, bits, PER_TENSOR))
        assert torch.equal(nothing, weight * 0)


def test_a_channel_that_decayed_to_nothing():
    """Weight decay leaves channels below the smallest normal float32: their scale must not become
    0."""
    for bits, tiny in product((2, 8, 16), (1e-38, 1e-41, 1e-44, 1e-45)):
        weight = torch.tensor([[tiny, -tiny, 0.0], [1.0, -1.0, 0.0]])
        back = dequantize_weight(quantize_weight(weight, bits, PER_CHANNEL))
        assert torch.equal(back[1], weight[1])
        assert float((back[0] - weight[0]).abs().max()) <= float(weight.abs()[0].max())


def test_weight_that_is_not_finite():
    for bad, granularity in product((float("nan"), float("inf"), -float("inf")), BOTH):
        weight = torch.ones(3, 4)
        weight[2, 1] = bad
        for quantize in (quantize_weight, round_weight):
            with pytest.raises(FedsimError, match=r"NaN or infinite.*download or export it again"):
                quantize(weight, 8, granularity)


def test_half_precision_weights_and_gradients_are_no_obstacle():
    weight = torch.nn.Parameter(torch.randn(4, 5).half())
    packed = quantize_weight(weight, 8, PER_TENSOR)
    expected = quantize_weight(weight.detach().float(), 8, PER_TENSOR)
    np.testing.assert_array_equal(packed.payload, expected.payload)


def test_unknown_granularity_and_width():
    with pytest.raises(FedsimError, match="did you mean 'per_channel'"):
        quantize_weight(torch.ones(2, 2), 8, "per_chanel")
    for bits in (1, 17):
        with pytest.raises(FedsimError, match=f"bit depth of {bits} .*use 2 to 16"):
            quantize_weight(torch.ones(2, 2), bits, PER_TENSOR)
    assert GRANULARITIES.names() == ["per_channel", "per_tensor"]
