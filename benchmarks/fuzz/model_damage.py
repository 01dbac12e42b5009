"""Structured damage to a safetensors file: to fields, numbers and order, which keeps it whole."""

from __future__ import annotations

import hashlib
import json
import random
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 16, 17, 255, 2**31, 2**63 - 1, 2**64, -(2**63), 10**40),
    *(0.5, -0.0, 1e308, float("nan"), float("inf"), "", "0", "é", "\ud800", "\0", "x" * 5000),
    *([], {}, [[]], [1, 2], {"a": 1}, "../../etc/passwd", "per_tensor", "group_32", "group_0"),
    *("F16", "F64", "BF16", "U8", "BOOL", "fedsim-model/2", "fedsim-model/3"),
)
"""What a field may be instead."""
WORDS = (0x7C00, 0xFC00, 0x7E00, 0x0000, 0x8000, 0x0001, 0x7BFF, 0xFFFF)
"""float16: infinities, NaN, zeros, the smallest, the largest, another NaN."""


def parts(data: bytes) -> tuple[dict[str, Any], bytes, int]:
    """Return the header of a file as JSON, its tensors, and the header's length."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :], length


def joined(entries: Any, body: bytes, length: int) -> bytes:
    """Return a file with this header, padded to its length where it is shorter."""
    text = json.dumps(entries, separators=(",", ":")).encode().ljust(length)
    return struct.pack("<Q", len(text)) + text + body


def rehashed(data: bytes) -> bytes:
    """Return a file with the hash that belongs to it; a signature does not count."""
    found = DIGEST.search(data[:1_000_000])
    if found is None:
        return data
    place = slice(*found.span(1))
    blank = bytearray(data)
    blank[place] = b"0" * 64
    signature = re.search(rb'"ed25519":"([^"]*)"', blank[:1_000_000])
    if signature is not None:
        start, end = signature.span(1)
        blank[start:end] = b"0" * (end - start)
    digest = hashlib.sha256(blank).hexdigest().encode()
    return data[: place.start] + digest + data[place.stop :]


def manifest_field(data: bytes, rng: random.Random) -> bytes:
    """Another value of a field of the manifest, or of one bit depth."""
    entries, body, length = parts(data)
    manifest = json.loads(entries["__metadata__"]["manifest"])
    key = rng.choice([*manifest, "window_s", "keep", "language", "surplus", "bit"])
    value = rng.choice(VALUES)
    if key == "bit":
        manifest["bits"][rng.randrange(len(manifest["bits"]))] = rng.choice(
            [*VALUES, *range(2, 17)]
        )
    elif key in ("window_s", "keep", "language"):
        manifest["settings"][key] = value
    elif rng.random() < 0.2:
        manifest.pop(key, None)
    else:
        manifest[key] = value
    entries["__metadata__"]["manifest"] = json.dumps(manifest, sort_keys=True)
    return joined(entries, body, length)


def tensor_field(data: bytes, rng: random.Random) -> bytes:
    """Another type, shape or place of a tensor."""
    entries, body, length = parts(data)
    names = [name for name in entries if name != "__metadata__"]
    entry = entries[rng.choice(names)]
    key = rng.choice(list(entry))
    if isinstance(entry[key], list) and entry[key] and rng.random() < 0.7:
        at = rng.randrange(len(entry[key]))
        entry[key][at] = rng.choice([*VALUES, entry[key][at] + rng.choice([-2, -1, 1, 2, 8])])
    else:
        entry[key] = rng.choice(VALUES)
    return joined(entries, body, length)


def tensors_swapped(data: bytes, rng: random.Random) -> bytes:
    """Two tensors under each other's names, or in each other's places."""
    entries, body, length = parts(data)
    a, b = rng.sample([name for name in entries if name != "__metadata__"], 2)
    if rng.random() < 0.5:
        entries[a], entries[b] = entries[b], entries[a]
    else:
        order = [{a: b, b: a}.get(name, name) for name in entries]
        entries = {name: entries[name] for name in order}
    return joined(entries, body, length)


def tensor_renamed(data: bytes, rng: random.Random) -> bytes:
    """A tensor that is missing, has another name, or there is one more."""
    entries, body, length = parts(data)
    names = [name for name in entries if name != "__metadata__"]
    name = rng.choice(names)
    other = rng.choice(["fedsim.more", "head.rows", "mid.rows", "x", "", "head.codes", "\ud800"])
    if rng.random() < 0.3:
        entries[other] = {"dtype": "U8", "shape": [3], "data_offsets": [len(body), len(body) + 3]}
        return joined(entries, body + bytes(3), length)
    if rng.random() < 0.4:
        del entries[name]
        return joined(entries, body, length)
    return joined({other if k == name else k: v for k, v in entries.items()}, body, length)


def numbers(data: bytes, rng: random.Random) -> bytes:
    """Other numbers somewhere in the tensors."""
    entries, body, length = parts(data)
    names = [name for name in entries if name != "__metadata__" and entries[name]["shape"] != [0]]
    start, end = entries[rng.choice(names)]["data_offsets"]
    spoilt = bytearray(body)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(start, max(end, start + 1))
        if rng.random() < 0.5:
            at -= (at - start) % 2
            new = struct.pack("<H", rng.choice(WORDS))
        elif rng.random() < 0.5:
            at -= (at - start) % 4
            new = struct.pack("<f", rng.choice([float("nan"), float("inf"), -1e38, 3e38, 0, -0.0]))
        else:
            new = bytes([rng.randrange(256)])
        spoilt[at : at + len(new)] = new
    return joined(entries, bytes(spoilt[: len(body)]), length)


def depths_changed(data: bytes, rng: random.Random) -> bytes:
    """Another bit depth of a layer, with as many bytes as it takes: a file that may be read."""
    entries, body, length = parts(data)
    manifest = json.loads(entries["__metadata__"]["manifest"])
    names = [name for name in entries if name.endswith(".codes")]
    which = rng.randrange(len(names))
    bits, other = manifest["bits"][which], rng.randint(2, 16)
    manifest["bits"][which] = other
    entries["__metadata__"]["manifest"] = json.dumps(manifest, sort_keys=True)
    start, end = entries[names[which]]["data_offsets"]
    size = (end - start) * other // bits + rng.choice([0, 0, 1, -1])
    body = body[:start] + rng.randbytes(max(size, 0)) + body[end:]
    moved = start
    for name in names[which:]:
        size = max(size, 0) if name == names[which] else entries[name]["shape"][0]
        entries[name]["shape"] = [size]
        entries[name]["data_offsets"] = [moved, moved + size]
        moved += size
    return joined(entries, body, length)


def deep(data: bytes, rng: random.Random) -> bytes:
    """JSON in JSON in JSON."""
    entries, body, length = parts(data)
    depth = rng.choice([10, 900, 100_000])
    nested = rng.choice(["[", '{"a":']) * depth
    nested += "0" + ("]" if nested[0] == "[" else "}") * depth
    about = json.loads(json.dumps(entries["__metadata__"]))
    if rng.random() < 0.5:
        about["manifest"] = about["manifest"].replace(
            '"settings": {', f'"settings": {{"x": {nested},'
        )
        return joined(entries | {"__metadata__": about}, body, length)
    text = json.dumps(entries, separators=(",", ":"))
    text = text.replace('"__metadata__":{', f'"__metadata__":{{"deep":{nested},', 1)
    return struct.pack("<Q", len(text)) + text.encode() + body


def text_changed(data: bytes, rng: random.Random) -> bytes:
    """The same JSON in other words: space, a name twice, another padding, another length."""
    entries, body, length = parts(data)
    text = data[8 : 8 + length]
    match rng.randrange(4):
        case 0:
            text = json.dumps(entries).encode()
        case 1:
            text = text.rstrip()[:-1] + b',"__metadata__":{}}'
        case 2:
            text = text[:-1] + rng.choice([b"\n", b"\t", b"\0", b"}"])
        case _:
            text = text.rstrip() + b" " * rng.choice([0, 1, 8, 4096, 5_000_000])
    return struct.pack("<Q", len(text)) + text + body


def raw(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes lost or added, without another hash."""
    spoilt = bytearray(data)
    match rng.randrange(4):
        case 0:
            for _ in range(rng.choice([1, 1, 3])):
                at = rng.choice([rng.randrange(8), rng.randrange(len(spoilt))])
                spoilt[at] ^= 1 << rng.randrange(8)
        case 1:
            del spoilt[rng.randrange(len(spoilt)) :]
        case 2:
            spoilt += rng.randbytes(rng.choice([1, 8, 1000]))
        case _:
            at = rng.randrange(len(spoilt))
            del spoilt[at : at + rng.choice([1, 8, 64])]
    return bytes(spoilt)


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    manifest_field,
    tensor_field,
    tensors_swapped,
    tensor_renamed,
    numbers,
    depths_changed,
    deep,
    text_changed,
    raw,
)


def damaged(
    data: bytes,
    rng: random.Random,
    damages: Sequence[Callable[[bytes, random.Random], bytes]],
) -> bytes:
    """Return a file with one of these damages; with raw damage if it is past all others."""
    try:
        return rng.choice(damages)(data, rng)
    except Exception:  # a file that was damaged before may lack anything
        return raw(data, rng)
