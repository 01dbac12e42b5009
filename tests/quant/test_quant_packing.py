from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quant_toys import thorough

from fedsim.errors import FedsimError
from fedsim.quant.packing import CHUNK, pack, packed_bytes, unpack

WIDTHS = range(2, 17)


def as_integer(codes: np.ndarray, bits: int) -> bytes:
    """The oracle: one big integer, code i shifted by i widths, written least byte first."""
    number = sum(int(c) << (i * bits) for i, c in enumerate(codes.reshape(-1)))
    return number.to_bytes((codes.size * bits + 7) // 8, "little")


@st.composite
def code_arrays(draw):
    bits = draw(st.sampled_from(WIDTHS))
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    seed = draw(st.integers(0, 2**32 - 1))
    codes = np.random.default_rng(seed).integers(0, 1 << bits, shape)
    extreme = draw(st.sampled_from([None, 0, (1 << bits) - 1]))
    return bits, codes if extreme is None else np.full(shape, extreme)


@thorough
@given(code_arrays())
def test_bytes_are_those_of_one_big_integer_and_come_back(case):
    bits, codes = case
    payload = pack(codes, bits)
    assert payload.dtype == np.uint8
    assert payload.tobytes() == as_integer(codes, bits)
    back = unpack(payload, bits, codes.size)
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, codes.reshape(-1))


def test_every_width_at_odd_lengths():
    for bits, n in product(WIDTHS, (0, 1, 2, 3, 5, 7, 8, 9, 31, 257)):
        codes = np.random.default_rng(n).integers(0, 1 << bits, n).astype(np.int32)
        payload = pack(codes, bits)
        assert payload.nbytes == packed_bytes(n, bits) == int(np.ceil(n * bits / 8))
        assert payload.tobytes() == as_integer(codes, bits)
        np.testing.assert_array_equal(unpack(payload, bits, n), codes)


def test_by_hand():
    # 3 bits: 1 = 001, 2 = 010, 7 = 111: ...111 010 001 = 0b1_1101_0001 = 0x1D1, least byte first.
    assert pack(np.array([1, 2, 7]), 3).tolist() == [0xD1, 0x01]
    # 12 bits: 0xABC, 0x123 -> 0x123ABC.
    assert pack(np.array([0xABC, 0x123]), 12).tolist() == [0xBC, 0x3A, 0x12]


@pytest.mark.parametrize("bits", [3, 5, 8, 11, 13, 16])
def test_across_the_chunk(bits):
    n = CHUNK + 13
    codes = np.random.default_rng(bits).integers(0, 1 << bits, n).astype(np.uint16)
    payload = pack(codes, bits)
    assert payload.nbytes == -(-n * bits // 8)
    np.testing.assert_array_equal(unpack(payload, bits, n), codes)
    # The bytes about the seam are the oracle's too: codes before a whole chunk fill whole bytes.
    edge = CHUNK - 16
    about = payload[edge * bits // 8 :].tobytes()
    assert about == as_integer(codes[edge:], bits)


@thorough
@given(code_arrays(), st.sampled_from([8, 16, 24]))
def test_chunk_size_does_not_matter(case, chunk):
    bits, codes = case
    whole = pack(codes, bits)
    assert pack(codes, bits, chunk=chunk).tobytes() == whole.tobytes()
    np.testing.assert_array_equal(
        unpack(whole, bits, codes.size, chunk=chunk), unpack(whole, bits, codes.size)
    )


def test_width_out_of_range():
    for bits in (-1, 0, 1, 17, 32):
        with pytest.raises(FedsimError, match=rf"bit depth of {bits} .*use 2 to 16"):
            pack(np.zeros(4, np.int64), bits)
        with pytest.raises(FedsimError, match=rf"bit depth of {bits} .*use 2 to 16"):
            unpack(np.zeros(4, np.uint8), bits, 4)


def test_code_out_of_range():
    for bits, code in product(WIDTHS, (1 << 16, -1)):
        with pytest.raises(ValueError, match=rf"in {bits} bits must lie in 0..{2**bits - 1}"):
            pack(np.array([0, code]), bits)
        with pytest.raises(ValueError, match="must lie in"):
            pack(np.array([0, 1 << bits]), bits)


def test_payload_of_wrong_length():
    for bits, wrong in product(WIDTHS, (-1, 1)):
        right = pack(np.zeros(21, np.int64), bits)
        payload = np.zeros(right.size + wrong, np.uint8)
        with pytest.raises(ValueError, match=f"take {right.size} bytes, not {payload.size}"):
            unpack(payload, bits, 21)
