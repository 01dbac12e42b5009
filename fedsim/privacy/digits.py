"""Numbers of few choices each, packed into the least whole bytes that can hold them all.

The digits of a number whose place i counts to `radices[i]`: all combinations are the numbers below
the product of the radices, so ceil(log2(product)) bits always do and fewer never.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedsim.errors import FedsimError


def digits_bytes(radices: Sequence[int]) -> int:
    """Return the bytes that digits of these radices take."""
    return -(-(math.prod(radices) - 1).bit_length() // 8)


def pack_digits(digits: Sequence[int], radices: Sequence[int]) -> bytes:
    """Pack digit i, in 0..radices[i]-1, of each place; `ValueError` for one that is not."""
    number = 0
    for digit, radix in zip(reversed(digits), reversed(radices), strict=True):
        if not 0 <= digit < radix:
            raise ValueError(f"the digit {digit} is not in 0..{radix - 1}")
        number = number * radix + int(digit)
    return number.to_bytes(digits_bytes(radices), "little")


def unpack_digits(payload: bytes, radices: Sequence[int]) -> list[int]:
    """Return the digits of a payload: the inverse of `pack_digits`.

    Raises `FedsimError` for a payload that no digits give.
    """
    number, most = int.from_bytes(payload, "little"), math.prod(radices)
    if len(payload) != digits_bytes(radices) or number >= most:
        raise FedsimError(
            f"a release of {len(payload)} bytes holds no {len(radices)} numbers of"
            f" {digits_bytes(radices)} bytes: device and server do not agree on its terms"
        )
    digits = []
    for radix in radices:
        number, digit = divmod(number, radix)
        digits.append(digit)
    return digits
