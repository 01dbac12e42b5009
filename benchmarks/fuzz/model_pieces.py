"""Damage to what else a device reads: packed layers, public clips, and what is kept of them."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.numpy import save

from benchmarks.fuzz import Finding
from benchmarks.fuzz.judging import finding, reads, wordy
from benchmarks.fuzz.model_damage import (
    damaged,
    raw,
    tensor_field,
    tensor_renamed,
    tensors_swapped,
)
from fedsim.errors import FedsimError
from fedsim.quant.bank import BlobStore, from_blob, to_blob
from fedsim.quant.granularities import GRANULARITIES, WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.packing import packed_bytes
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.weights import dequantize_weight
from fedsim.speech.public_cache import kept_arrays
from fedsim.speech.public_set import PublicClip, public_set_of, read_public_set

LAYERS = (
    Layer("conv", "conv1d", (6, 4, 3)),
    Layer("mid", "linear", (6, 40)),
    Layer("head", "linear", (19, 6), ("table",)),
)


def blob(rng: random.Random, home: Path) -> Finding | None:
    """Damage a packed layer, and ask the bank for a name that is none."""
    layer, bits = rng.choice(LAYERS), rng.randint(2, 16)
    weight = torch.randn(layer.shape, generator=torch.Generator().manual_seed(0))
    how = WeightFormat(rng.choice(sorted(GRANULARITIES)), rng.random() < 0.5)
    data = bytearray(to_blob(quantize_weight(weight, bits, how)))
    store = BlobStore(home / "bank")
    for _ in range(rng.choice([1, 2, 8])):
        at = rng.randrange(len(data) // 2) * 2
        data[at : at + 2] = struct.pack("<H", rng.choice([0, 0x7C00, 0x7E00, rng.getrandbits(16)]))
    del data[rng.choice([len(data), len(data), len(data) - 1]) :]
    other = rng.choice([bits, bits, rng.randint(-1, 40)])
    name = rng.choice(["", "/dev/zero", "../valid", "x" * 5000, "0" * 64, "\0", "\ud800"])

    def check() -> str:
        if reads(lambda: store.get(name)) or name in store:
            return f"a blob is read by the name {name!r:.80}"
        packed = bytes(data)

        def use() -> None:
            found = dequantize_weight(from_blob(packed, layer, other, how))
            assert torch.isfinite(found).all(), "weights are not finite"

        fits = packed_bytes(layer.n_weights, max(other, 0)) <= len(packed)
        return "a blob of another size is accepted" if reads(use) and not fits else ""

    return finding(bytes(data), check)


def clips(rng: random.Random, home: Path) -> Finding | None:
    """Damage public clips."""
    whole = [PublicClip(np.zeros(n, np.float32), "it") for n in (3, 5, 8)]
    lengths = np.array([3, 5, 8], rng.choice([np.int64, np.int64, np.float64, np.int8, np.uint64]))
    languages = rng.choice(
        ['["it","it","it"]', "[" * 100_000, '"iii"', "[1,2,3]", "{}", "null", '["it"]', "[NaN]"]
    )
    if rng.random() < 0.7 and lengths.dtype == np.int64:
        lengths[rng.randrange(3)] = rng.choice([-1, 2**63 - 1, -(2**63), 0, 4, 2**40])
    kind = rng.choice([np.int16, np.int16, np.float32, np.bool_, np.uint8])
    arrays = {
        "samples": np.zeros(rng.choice([16, 16, 0, 17]), kind),
        "lengths": lengths,
        "languages": np.frombuffer(languages.encode(), np.uint8),
    }
    arrays.pop(rng.choice([*arrays, "", "", ""]), None)
    data = rng.choice([save(arrays), save(arrays), public_set_of(whole).to_bytes()])
    if rng.random() < 0.3:
        data = raw(data, rng)

    def check() -> str:
        try:
            found = read_public_set(data)
        except FedsimError as error:
            return wordy(error)
        return "" if found.to_bytes() == data else "public clips are accepted that no writer writes"

    return finding(data, check)


def kept(rng: random.Random, home: Path) -> Finding | None:
    """Damage losses that are kept in the cache."""
    with mock.patch.dict(os.environ, FEDSIM_CACHE=str(home)):
        return _kept(rng, home)


def _kept(rng: random.Random, home: Path) -> Finding | None:
    legal, made = {"values": (4, 2)}, {"values": np.arange(8.0).reshape(4, 2)}
    path = home / "public" / "losses.safetensors"
    path.unlink(missing_ok=True)
    kept_arrays("losses", legal, lambda: made)
    data = path.read_bytes()
    data = damaged(data, rng, (raw, tensor_field, tensor_renamed, tensors_swapped))
    path.write_bytes(data)

    def check() -> str:
        found = kept_arrays("losses", legal, lambda: made)
        same = np.array_equal(found["values"], made["values"])
        return "" if same else "other losses than were kept are accepted"

    return finding(data, check)
