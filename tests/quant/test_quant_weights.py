from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quant_toys import thorough

from fedsim.errors import FedsimError
from fedsim.quant.granularities import GRANULARITIES, PER_CHANNEL, PER_TENSOR, WeightFormat
from fedsim.quant.packing import packed_bytes, unpack
from fedsim.quant.rounding.independent import quantize_weight, round_weight
from fedsim.quant.weights import dequantize_weight, signed_codes

BOTH = (PER_TENSOR, PER_CHANNEL)


def half_up(value: float) -> np.float64:
    """The smallest float16 that is not below a positive `value`, found among all of them."""
    every = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    return every[np.searchsorted(every, value)]


def scale_of(top: float, bits: int) -> np.float64:
    """The paper's scale of weights of at most `top`, as it is stored; 1 where all are zero."""
    return half_up(float(top) / (2 ** (bits - 1) - 1)) if top else np.float64(1)


def last(bits: int) -> float:
    """What becomes of a weight of 1 that is the largest of its scale: the nearest code, times S."""
    scale = scale_of(1.0, bits)
    return float(np.float32(np.rint(1 / scale)) * np.float32(scale))


def codes_of(packed):
    n = int(np.prod(packed.shape))
    signed = unpack(packed.payload, packed.bits, n).astype(int) - 2 ** (packed.bits - 1)
    return signed.reshape(packed.shape)


def test_per_tensor_by_hand():
    weight = torch.tensor([[0.7, -0.34, 0.05], [-0.26, 0.0, 0.31]])
    packed = quantize_weight(weight, 4, PER_TENSOR)
    # max|W| = 0.7, limit 2^3 - 1 = 7, S = 0.1: 7, -3.4, 0.5, -2.6, 0, 3.1. The half is a tie that
    # rounding may break either way (0.05 / 0.1), so it is left out. As float16, rounded up, S is
    # 1639 / 2^14, just above 0.1.
    codes = codes_of(packed)
    assert packed.scales.tolist() == [[1639 / 2**14]]
    assert codes[0, :2].tolist() == [7, -3]
    assert codes[1].tolist() == [-3, 0, 3]
    back = dequantize_weight(packed)
    assert back[1].tolist() == [-3 * 1639 / 2**14, 0.0, 3 * 1639 / 2**14]


def test_per_channel_by_hand():
    weight = torch.tensor([[[0.75, -1.5]], [[24.0, 7.9]]])  # (2, 1, 2), as a convolution
    packed = quantize_weight(weight, 3, PER_CHANNEL)
    # limit 3: S = 0.5 and 8; W / S = 1.5 (to even: 2), -3, 3, 0.9875.
    assert packed.scales.tolist() == [[0.5], [8.0]]
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
        scales = torch.tensor([scale_of(float(top), bits) for top in weight.abs().amax(1)])
        scales = scales.float()
        zeros = torch.zeros(16, dtype=torch.int32)
        torchs = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -limit, limit)
        ours = dequantize_weight(quantize_weight(weight, bits, PER_CHANNEL))
        torch.testing.assert_close(ours, torchs, rtol=1e-6, atol=0)


@st.composite
def weights(draw):
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=2, max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Scales of two bits are as large as the weights, and float16 ends at 65,504.
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(
        -6, 4, (shape[0],) + (1,) * (len(shape) - 1)
    )
    values[rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0.0
    return torch.from_numpy(values.astype(np.float32))


@thorough
@given(weights(), st.integers(2, 16), st.sampled_from(BOTH))
def test_error_is_at_most_half_a_step(weight, bits, how):
    packed = quantize_weight(weight, bits, how)
    back = dequantize_weight(packed).double().numpy()
    full = weight.double().numpy()
    assert back.shape == full.shape
    rows = np.abs(full).reshape(len(full), -1)
    top = rows.max(axis=1) if how == PER_CHANNEL else rows.max(keepdims=True).reshape(1)
    step = np.array([scale_of(t, bits) for t in top])
    np.testing.assert_array_equal(packed.scales.astype(float), step[:, None])
    error = np.abs(back - full).reshape(len(full), -1)
    assert (error <= step[:, None] * (0.5 + 1e-5 * 2 ** max(0, bits - 10))).all()
    # No bit is bought that is not used: where float16 holds the scale to its 11 digits, the largest
    # weight of each scale has the last code, or one that the rounding up of the scale puts as near.
    codes = np.abs(codes_of(packed)).reshape(len(full), -1)
    limit = 2 ** (bits - 1) - 1
    normal = step >= 2.0**-14
    largest = codes.max(axis=1) if how == PER_CHANNEL else codes.max(keepdims=True).reshape(1)
    assert (largest[normal & (top > 0)] >= np.rint(limit / (1 + 2.0**-10) - 0.01)).all()
    assert codes.max() <= limit
    assert (back[full == 0] == 0).all()
    assert packed.payload.nbytes == packed_bytes(full.size, bits)
    assert packed.scales.dtype == np.float16
    assert packed.scales.shape == how.grid(full.shape) == (len(top), 1)
    assert packed.scales.size == how.n_scales(full.shape)
    assert packed.nbytes == packed_bytes(full.size, bits) + 2 * len(top)


@thorough
@given(weights(), st.integers(2, 16), st.sampled_from(BOTH))
def test_quantizing_twice_changes_nothing(weight, bits, how):
    """Where the largest weight has the last code, which follows from it and the stored scale."""
    once = quantize_weight(weight, bits, how)
    back = dequantize_weight(once)
    codes = np.abs(codes_of(once)).reshape(len(weight), -1)
    limit = 2 ** (bits - 1) - 1
    largest = codes.max(axis=1) if how == PER_CHANNEL else codes.max(keepdims=True).reshape(1)
    full = (largest == limit) | (largest == 0) & (once.scales[:, 0] == 1)
    twice = quantize_weight(back, bits, how)
    np.testing.assert_array_equal(twice.scales[full], once.scales[full])
    rows = full if how == PER_CHANNEL else np.repeat(full, len(weight))
    np.testing.assert_array_equal(codes_of(twice)[rows], codes_of(once)[rows])


@thorough
@given(weights(), st.integers(2, 16), st.sampled_from([8, 16, 72]))
def test_a_large_weight_is_unpacked_in_steps(weight, bits, step):
    """The same whatever the step, and wherever the last one ends."""
    packed = quantize_weight(weight, bits, PER_CHANNEL)
    whole = dequantize_weight(packed)
    per_row = packed.scales.astype(np.float32).reshape(-1, *[1] * (weight.ndim - 1))
    np.testing.assert_array_equal(whole, codes_of(packed).astype(np.float32) * per_row)
    assert torch.equal(dequantize_weight(packed, step=step), whole)
    signed = signed_codes(packed, np.int32, step=step)
    np.testing.assert_array_equal(signed, codes_of(packed))


def test_the_error_is_that_of_a_uniform_grid():
    for bits in range(2, 17):
        # The mean squared error is S^2 / 12, from 4 bits on.
        weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(bits))
        error = (dequantize_weight(quantize_weight(weight, bits, PER_TENSOR)) - weight).double()
        step = scale_of(float(weight.abs().max()), bits)
        if bits >= 4:
            assert float(error.square().mean()) == pytest.approx(step**2 / 12, rel=0.05)
        assert float(error.abs().max()) <= step * 0.501 + 1e-7


def test_zero_channels():
    weight = torch.zeros(3, 4)
    weight[1] = torch.tensor([1.0, -1.0, 0.0, 1.0])
    for bits in (2, 8, 16):
        back = dequantize_weight(quantize_weight(weight, bits, PER_CHANNEL))
        assert torch.equal(back, weight * last(bits))
        assert back[1, 0] == pytest.approx(1, rel=3e-3)
        nothing = dequantize_weight(quantize_weight(weight * 0, bits, PER_TENSOR))
        assert torch.equal(nothing, weight * 0)


def test_a_channel_that_decayed_to_nothing():
    """Weight decay leaves channels below the smallest number of float16 and even below the smallest
    normal float32: their scale must not become 0."""
    for bits, tiny in product((2, 8, 16), (1e-8, 1e-38, 1e-41, 1e-44, 1e-45)):
        weight = torch.tensor([[tiny, -tiny, 0.0], [1.0, -1.0, 0.0]])
        back = dequantize_weight(quantize_weight(weight, bits, PER_CHANNEL))
        assert torch.equal(back[1], weight[1] * last(bits))
        assert float((back[0] - weight[0]).abs().max()) <= float(weight.abs()[0].max())


def test_weight_that_is_not_finite():
    for bad, how in product((float("nan"), float("inf"), -float("inf")), BOTH):
        weight = torch.ones(3, 4)
        weight[2, 1] = bad
        for quantize in (quantize_weight, round_weight):
            with pytest.raises(FedsimError, match=r"NaN or infinite.*download or export it again"):
                quantize(weight, 8, how)


def test_half_precision_weights_and_gradients_are_no_obstacle():
    weight = torch.nn.Parameter(torch.randn(4, 5).half())
    packed = quantize_weight(weight, 8, PER_TENSOR)
    expected = quantize_weight(weight.detach().float(), 8, PER_TENSOR)
    np.testing.assert_array_equal(packed.payload, expected.payload)


def test_unknown_granularity_and_width():
    with pytest.raises(FedsimError, match="did you mean 'per_channel'"):
        quantize_weight(torch.ones(2, 2), 8, WeightFormat("per_chanel"))
    for bits in (1, 17):
        with pytest.raises(FedsimError, match=f"bit depth of {bits} .*use 2 to 16"):
            quantize_weight(torch.ones(2, 2), bits, PER_TENSOR)
    groups = ["group_128", "group_32", "group_64"]
    assert GRANULARITIES.names() == [*groups, "per_channel", "per_tensor"]
