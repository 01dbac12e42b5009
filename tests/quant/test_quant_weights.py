from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from quant_toys import BOTH, FORMATS, HALVES, PER_CHANNEL, PER_TENSOR, half_up, thorough

from fedsim.errors import FedsimError
from fedsim.quant.granularities import GRANULARITIES, WeightFormat
from fedsim.quant.packing import packed_bytes, unpack
from fedsim.quant.rounding.independent import quantize_weight, round_weight
from fedsim.quant.weights import dequantize_weight, signed_codes

GROUPS = ("group_128", "group_32", "group_64")


def codes_of(packed):
    """q - Z, each scale's zero point written out beside every code of it."""
    codes = unpack(packed.payload, packed.bits, int(np.prod(packed.shape))).astype(int)
    if packed.zeros is None:
        return codes.reshape(packed.shape) - 2 ** (packed.bits - 1)
    return codes.reshape(packed.shape) - spread(packed.zeros.astype(int), packed)


def spread(grid, packed):
    """One number for each scale -> one for each weight, in the weight's shape."""
    n, k = packed.shape[0], int(np.prod(packed.shape[1:]))
    group = GRANULARITIES[packed.format.granularity].group or k
    columns = np.repeat(grid, group, axis=1)[:, :k]
    return np.broadcast_to(columns, (n, k)).reshape(packed.shape)


def test_per_tensor_by_hand():
    weight = torch.tensor([[0.7, -0.34, 0.05], [-0.26, 0.0, 0.31]])
    packed = quantize_weight(weight, 4, PER_TENSOR)
    # max|W| = 0.7, limit 2^3 - 1 = 7, and 0.1 lies between the float16 numbers 1638 / 2^14 and
    # 1639 / 2^14 = 0.10004, of which the larger is S: 6.997, -3.4, 0.4998, -2.6, 0, 3.1.
    codes = codes_of(packed)
    assert packed.scales.tolist() == [[1639 / 2**14]]
    assert codes.tolist() == [[7, -3, 0], [-3, 0, 3]]
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
        scales = torch.from_numpy(half_up(weight.abs().amax(1) / limit)).float()
        zeros = torch.zeros(16, dtype=torch.int32)
        torchs = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -limit, limit)
        ours = dequantize_weight(quantize_weight(weight, bits, PER_CHANNEL))
        torch.testing.assert_close(ours, torchs, rtol=1e-6, atol=0)


@st.composite
def weights(draw, exponents=(-6, 5)):
    """Rows of magnitudes from 1e-6 to 1e4: their scales are float16, subnormal ones too."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=2, max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(
        *exponents, (shape[0],) + (1,) * (len(shape) - 1)
    )
    values[rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0.0
    return torch.from_numpy(values.astype(np.float32))


@thorough
@given(weights(), st.integers(2, 16), st.sampled_from(BOTH))
def test_error_is_at_most_half_a_step(weight, bits, weight_format):
    packed = quantize_weight(weight, bits, weight_format)
    back = dequantize_weight(packed).double().numpy()
    full = weight.double().numpy()
    assert back.shape == full.shape
    rows = np.abs(full).reshape(len(full), -1)
    per_channel = weight_format == PER_CHANNEL
    top = rows.max(axis=1) if per_channel else np.full(len(full), rows.max())
    limit = 2 ** (bits - 1) - 1
    step = half_up(top / limit)
    error = np.abs(back - full).reshape(len(full), -1)
    assert (error <= step[:, None] * (0.5 + 1e-5 * 2 ** max(0, bits - 10))).all()
    # No bit is bought that is not used: the largest weight of each scale has the largest code, or,
    # as scales have 11 bits, one of the last 2^-10 of them.
    codes = np.abs(codes_of(packed)).reshape(len(full), -1)
    used = (rows == top[:, None]) & (top >= limit * 2.0**-14)[:, None]  # subnormals have fewer
    assert (codes[used] >= np.floor(limit * (1 - 2**-10))).all()
    assert codes.max() <= limit
    assert (back[full == 0] == 0).all()
    assert packed.payload.nbytes == packed_bytes(full.size, bits)
    assert packed.scales.dtype == np.float16
    assert packed.scales.shape == ((len(full), 1) if per_channel else (1, 1))
    assert packed.scales.shape == weight_format.grid(packed.shape)
    np.testing.assert_array_equal(np.broadcast_to(packed.scales[:, 0], len(full)), step)
    assert packed.nbytes == packed_bytes(full.size, bits) + 2 * packed.scales.size


@thorough
@given(weights(exponents=(0, 5)), st.integers(2, 10), st.sampled_from(BOTH))
def test_quantizing_twice_changes_nothing(weight, bits, weight_format):
    """To 10 bits, where a scale of 11 bits leaves the largest weight the largest code."""
    once = quantize_weight(weight, bits, weight_format)
    assume((once.scales >= 2.0**-14).all())
    twice = quantize_weight(dequantize_weight(once), bits, weight_format)
    np.testing.assert_array_equal(twice.payload, once.payload)
    zero = (codes_of(once) == 0).reshape(len(weight), -1)
    zero = zero.all(axis=1) if weight_format == PER_CHANNEL else zero.all()
    np.testing.assert_array_equal(twice.scales[:, 0], np.where(zero, 1, once.scales[:, 0]))


@thorough
@given(weights(), st.integers(2, 16), st.sampled_from(FORMATS), st.sampled_from([8, 16, 72]))
def test_a_large_weight_is_unpacked_in_steps(weight, bits, weight_format, step):
    """The same whatever the step, and wherever the last one ends."""
    packed = quantize_weight(weight, bits, weight_format)
    whole = dequantize_weight(packed)
    scales = spread(packed.scales.astype(np.float32), packed)
    np.testing.assert_array_equal(whole, codes_of(packed).astype(np.float32) * scales)
    assert torch.equal(dequantize_weight(packed, step=step), whole)
    signed = signed_codes(packed, np.int32, step=step)
    np.testing.assert_array_equal(signed, codes_of(packed))


def test_the_error_is_that_of_a_uniform_grid():
    for bits in range(2, 17):
        # The mean squared error is S^2 / 12, from 4 bits on.
        weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(bits))
        error = (dequantize_weight(quantize_weight(weight, bits, PER_TENSOR)) - weight).double()
        step = float(half_up(float(weight.abs().max()) / (2 ** (bits - 1) - 1)))
        if bits >= 4:
            assert float(error.square().mean()) == pytest.approx(step**2 / 12, rel=0.05)
        assert float(error.abs().max()) <= step * 0.501 + 1e-7


def test_zero_channels():
    weight = torch.zeros(3, 4)
    weight[1] = torch.tensor([1.0, -1.0, 0.0, 1.0])
    for bits in (2, 8, 16):
        back = dequantize_weight(quantize_weight(weight, bits, PER_CHANNEL))
        assert torch.equal(back == 0, weight == 0)
        step = float(half_up(1 / (2 ** (bits - 1) - 1)))
        assert float((back - weight).abs().max()) <= step / 2
        nothing = dequantize_weight(quantize_weight(weight * 0, bits, PER_TENSOR))
        assert torch.equal(nothing, weight * 0)


def test_a_channel_that_decayed_to_nothing():
    """Weight decay leaves channels below the smallest normal float32: their scale must not become
    0."""
    for bits, tiny in product((2, 8, 16), (1e-38, 1e-41, 1e-44, 1e-45)):
        weight = torch.tensor([[tiny, -tiny, 0.0], [1.0, -1.0, 0.0]])
        back = dequantize_weight(quantize_weight(weight, bits, PER_CHANNEL))
        alone = dequantize_weight(quantize_weight(weight[1:], bits, PER_CHANNEL))
        assert torch.equal(back[1:], alone)
        assert float((back[0] - weight[0]).abs().max()) <= float(weight.abs()[0].max())


def test_weight_that_is_not_finite():
    for bad, weight_format in product((float("nan"), float("inf"), -float("inf")), FORMATS):
        weight = torch.ones(3, 4)
        weight[2, 1] = bad
        for quantize in (quantize_weight, round_weight):
            with pytest.raises(FedsimError, match=r"NaN or infinite.*download or export it again"):
                quantize(weight, 8, weight_format)


def test_a_scale_that_float16_cannot_hold():
    """At 3 bits the largest weight that has one is 3 * 65,504."""
    largest = 3 * HALVES[-1]
    for weight_format in BOTH:
        packed = quantize_weight(torch.tensor([[largest, 1.0]]), 3, weight_format)
        assert packed.scales.tolist() == [[65504.0]]
        for quantize in (quantize_weight, round_weight):
            with pytest.raises(FedsimError, match=r"scale of 6.56e\+04.*model.keep.*more bits"):
                quantize(torch.tensor([[1.001 * largest, 1.0]]), 3, weight_format)


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
    assert GRANULARITIES.names() == [
        "group_128",
        "group_32",
        "group_64",
        "per_channel",
        "per_tensor",
    ]
