"""Digits of mixed radices, packed into the minimum number of whole bytes.

Digit i is below `radices[i]`. Together they form one number below the product of the radices, so
ceil(log2(product)) bits are always enough, and fewer never are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedsim.errors import FedsimError


def digits_bytes(radices: Sequence[int]) -> int:
    """Return the number of bytes for digits of these radices."""
    return -(-(math.prod(radices) - 1).bit_length() // 8)


def pack_digits(digits: Sequence[int], radices: Sequence[int]) -> bytes:
    """Pack digits, the i-th in 0..radices[i]-1; `ValueError` for one out of range."""
    number = 0
    for digit, radix in zip(reversed(digits), reversed(radices), strict=True):
        if not 0 <= digit < radix:
            raise ValueError(f"the digit {digit} is not in 0..{radix - 1}")
        number = number * radix + int(digit)
    return number.to_bytes(digits_bytes(radices), "little")


def unpack_digits(payload: bytes, radices: Sequence[int]) -> list[int]:
    """Return the digits of a payload: the inverse of `pack_digits`.

    Raises `FedsimError` for a payload that `pack_digits` cannot have made.
    """
    number, limit = int.from_bytes(payload, "little"), math.prod(radices)
    if len(payload) != digits_bytes(radices) or number >= limit:
        raise FedsimError(
            f"release: the payload of {len(payload)} bytes does not hold {len(radices)} numbers in"
            f" {digits_bytes(radices)} bytes; give device and server the same parameters"
        )
    digits = []
    for radix in radices:
        number, digit = divmod(number, radix)
        digits.append(digit)
    return digits
