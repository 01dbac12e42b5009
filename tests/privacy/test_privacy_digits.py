"""Digits of mixed radices in the minimum of whole bytes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples

from fedsim.errors import FedsimError
from fedsim.privacy.digits import digits_bytes, pack_digits, unpack_digits
from fedsim.quant.packing import pack

thorough = settings(max_examples=examples(150), deadline=None, derandomize=True, database=None)


@thorough
@given(
    st.lists(st.integers(1, 70), max_size=40).flatmap(
        lambda radices: st.tuples(
            st.just(radices), st.tuples(*(st.integers(0, r - 1) for r in radices))
        )
    )
)
def test_there_and_back_in_the_minimum_of_bytes(case):
    radices, digits = case
    payload = pack_digits(digits, radices)
    assert unpack_digits(payload, radices) == list(digits)
    combinations = math.prod(radices)
    assert len(payload) == digits_bytes(radices)
    assert 256 ** len(payload) >= combinations  # all combinations fit
    assert len(payload) == 0 or 256 ** (len(payload) - 1) < combinations  # and not in a byte less


def test_by_hand():
    # 2 + 3 * (1 + 4 * 5) = 65; 3 * 4 * 100 = 1200 combinations: 2 bytes.
    assert pack_digits([2, 1, 5], [3, 4, 100]) == bytes([65, 0])
    assert unpack_digits(bytes([65, 0]), [3, 4, 100]) == [2, 1, 5]
    assert pack_digits([], []) == b""


def test_powers_of_two_are_packed_as_the_models_codes_are():
    for bits in range(2, 17):
        codes = np.random.default_rng(bits).integers(0, 1 << bits, 77)
        assert pack_digits(codes.tolist(), [1 << bits] * 77) == pack(codes, bits).tobytes()


def test_digits_beyond_their_radix():
    for digits in ([3, 0], [0, -1]):
        with pytest.raises(ValueError, match=r"is not in 0\.\."):
            pack_digits(digits, [3, 4])


def test_payloads_that_no_digits_give():
    assert unpack_digits(bytes([11]), [3, 4]) == [2, 3]
    for payload in (b"", b"\x00\x00", bytes([12])):
        with pytest.raises(FedsimError, match="give device and server the same parameters"):
            unpack_digits(payload, [3, 4])
