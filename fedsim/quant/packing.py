"""Packing of integer codes into bytes, at any width from 2 to 16 bits, without wasting a bit.

Codes are written one after the other, least significant bit first; the last byte is padded with
zeros.
"""

from __future__ import annotations

import numpy as np

from fedsim.errors import FedsimError

MIN_BITS, MAX_BITS = 2, 16
_WHOLE = (2, 4)
"""Bit depths of which a byte holds whole codes, which shifts unpack, several times as fast."""
CHUNK = 1 << 20
"""Codes that are packed or unpacked at a time, which bounds the memory. A multiple of 8, so that
every chunk ends on a byte."""


def packed_bytes(n_codes: int, bits: int) -> int:
    """Return the bytes that `n_codes` codes of `bits` bits take: ceil(n * bits / 8)."""
    return -(-n_codes * bits // 8)


def pack(codes: np.ndarray, bits: int, *, chunk: int = CHUNK) -> np.ndarray:
    """Pack unsigned codes, each below 2**bits, any shape, into uint8 (packed_bytes(n, bits),).

    `chunk` codes are packed at a time, a multiple of 8. Raises `FedsimError` for a width outside
    2..16 and `ValueError` for a code that does not fit.
    """
    check_bits(bits)
    flat = np.ascontiguousarray(codes).reshape(-1)
    if flat.size and (int(flat.max()) >> bits or int(flat.min()) < 0):
        raise ValueError(f"codes packed in {bits} bits must lie in 0..{(1 << bits) - 1}")
    if bits == 8:
        return flat.astype(np.uint8)
    if bits == 16:
        return flat.astype("<u2").view(np.uint8)
    out = np.empty(packed_bytes(flat.size, bits), np.uint8)
    for start in range(0, flat.size, chunk):
        part = flat[start : start + chunk]
        if bits < 8:
            packed = _join(part.astype(np.uint8), bits)[: packed_bytes(part.size, bits)]
        else:
            planes = np.unpackbits(
                part.astype("<u2").view(np.uint8).reshape(-1, 2), axis=1, bitorder="little"
            )
            packed = np.packbits(planes[:, :bits], bitorder="little")
        at = start * bits // 8
        out[at : at + packed.size] = packed
    return out


def _join(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return uint8 codes (n,) of `bits` bits each without the bits between them, eight at a time.

    Neighbours are joined in pairs, these in pairs, and so once more: eight codes fill the lowest
    bytes of a word of 64 bits.
    """
    words = np.pad(codes, (0, -codes.size % 8))
    for width in (8, 16, 32):
        pairs = words.view(f"<u{width // 4}")
        low = pairs & ((1 << width) - 1)
        words = low | ((pairs ^ low) >> (width - width * bits // 8))
    return words.view(np.uint8).reshape(-1, 8)[:, :bits].reshape(-1)


def unpack(payload: np.ndarray, bits: int, n_codes: int, *, chunk: int = CHUNK) -> np.ndarray:
    """Return the `n_codes` codes of a payload as uint16 (n_codes,): the inverse of `pack`.

    Raises `FedsimError` for a width outside 2..16 and `ValueError` for a payload of the wrong
    length.
    """
    check_bits(bits)
    data = np.frombuffer(payload, np.uint8)
    if data.size != packed_bytes(n_codes, bits):
        raise ValueError(
            f"{n_codes} codes of {bits} bits take {packed_bytes(n_codes, bits)} bytes, not "
            f"{data.size}"
        )
    if bits == 8:
        return data.astype(np.uint16)
    if bits == 16:
        return data.view("<u2").copy()
    out = np.empty(n_codes, np.uint16)
    for start in range(0, n_codes, chunk):
        n = min(chunk, n_codes - start)
        at = start * bits // 8
        raw = data[at : at + packed_bytes(n, bits)]
        if bits in _WHOLE:
            shifts = np.arange(0, 8, bits, dtype=np.uint8)
            codes = (raw[:, None] >> shifts) & np.uint8((1 << bits) - 1)
            out[start : start + n] = codes.reshape(-1)[:n]
            continue
        planes = np.unpackbits(raw, count=n * bits, bitorder="little").reshape(n, bits)
        code = planes[:, 0].astype(np.uint16)
        for k in range(1, bits):  # plane by plane, without an (n, bits) array of 16-bit integers
            code |= planes[:, k].astype(np.uint16) << np.uint16(k)
        out[start : start + n] = code
    return out


def check_bits(bits: int) -> None:
    """Raise `FedsimError` for a bit depth outside 2..16."""
    if not MIN_BITS <= bits <= MAX_BITS:
        raise FedsimError(
            f"a bit depth of {bits} cannot be packed; use {MIN_BITS} to {MAX_BITS} bits"
        )
