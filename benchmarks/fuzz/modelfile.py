"""Damage to model files, packed layers, public clips and what is kept of them."""

from __future__ import annotations

import os
import random
import struct
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.fuzz import Finding
from benchmarks.fuzz.judging import finding, reads, wordy
from benchmarks.fuzz.model_damage import DAMAGES, damaged, joined, parts, rehashed
from benchmarks.fuzz.model_pieces import blob, clips, kept
from fedsim.errors import FedsimError
from fedsim.quant.activations import FLOAT, InputFormat, make_range
from fedsim.quant.granularities import GRANULARITIES, WeightFormat
from fedsim.quant.layers import find_layers, leftovers
from fedsim.quant.modelfile import (
    Manifest,
    ModelFile,
    fingerprint,
    load_leftovers,
    read,
    read_manifest,
    store_leftovers,
    write,
)
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.rows import Rows, kept_rows, trimmed_layers
from fedsim.quant.switch import Switch
from fedsim.quant.weights import dequantize_weight


class _Net(nn.Module):
    """A convolution, a tied table of tokens, a norm, and leftovers of other types."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(4, 6, 3)
        self.table = nn.Embedding(19, 6)
        self.mid = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("large", torch.tensor([1e6, 2.0]))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.head = nn.Linear(6, 19, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        x = self.conv(x[..., :4].transpose(1, 2))
        return self.head(self.mid(self.norm(x).transpose(1, 2)))


class _Model:
    def __init__(self) -> None:
        self.module = _Net().eval().requires_grad_(False)
        self.layers = find_layers(self.module)


@cache
def _model() -> tuple[_Model, Switch]:
    model = _Model()
    return model, Switch(model)  # type: ignore[arg-type]


@cache
def _keys() -> tuple[bytes, bytes]:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    public = private.public_key()
    return (
        private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()),
        public.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo),
    )


@cache
def _valid(home: Path) -> tuple[tuple[bytes, bool], ...]:
    """Return model files of several formats, with and without rows and signatures."""
    model, switch = _model()
    full, rest = switch.full_weights(), store_leftovers(leftovers(model.module, model.layers))
    found, rows = [], Rows("head", np.arange(19) % 3 > 0)
    for i, name in enumerate(sorted(GRANULARITIES)):
        for zero_points, some, signed in ((False, None, False), (True, rows, True)):
            how, bits = WeightFormat(name, zero_points), (3, 8, 5 + i)
            packed = tuple(
                quantize_weight(kept_rows(full[layer.name], layer, some), b, how)
                for layer, b in zip(model.layers, bits, strict=True)
            )
            inputs = (InputFormat(8, make_range(-1, 2)), InputFormat(6), FLOAT)
            settings = {"window_s": None, "keep": [], "language": "it"}
            manifest = Manifest("toy", fingerprint(model.layers), name, zero_points, bits, settings)
            file = ModelFile(manifest, packed, inputs, rest, some)
            write(home / "valid", model.layers, file, _keys()[0] if signed else None)
            found.append(((home / "valid").read_bytes(), signed))
    return tuple(found)


def try_one(rng: random.Random, home: Path) -> Finding | None:
    """Damage one input and read it."""
    attempt = rng.choices((_file, _sparse, blob, clips, kept), (12, 1, 2, 2, 2))[0]
    return attempt(rng, home)


def _file(rng: random.Random, home: Path) -> Finding | None:
    data, signed = rng.choice(_valid(home))
    valid = data
    for _ in range(rng.choice([1, 1, 1, 2])):
        data = damaged(data, rng, DAMAGES)
        if rng.random() < 0.9:
            data = rehashed(data)
    path = home / "damaged.safetensors"
    path.write_bytes(data)
    model, switch = _model()
    full = switch.full_leftovers()

    def check() -> str:
        if signed and data != valid and reads(lambda: read_manifest(path, _keys()[1])):
            return "a file that was changed after it was signed is accepted"
        reads(lambda: read_manifest(path))
        for rest in (None, full):
            try:
                file = read(path, model.layers, rest)
            except FedsimError as error:
                found = wordy(error)
                if found:
                    return found
                continue
            write(home / "again", model.layers, file)
            unsigned = (home / "again").read_bytes()
            if not signed and unsigned != data:
                return "a file is accepted that no writer writes"
            if rest is not None:
                _use(file)
        return ""

    return finding(data, check)


def _use(file: ModelFile) -> None:
    """Compute with a file that was accepted."""
    model, switch = _model()
    layers = trimmed_layers(model.layers, file.rows)
    weights = {
        layer.name: dequantize_weight(packed)
        for layer, packed in zip(layers, file.weights, strict=True)
    }
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    inputs = {layer.name: how for layer, how in zip(layers, file.inputs, strict=True)}
    switch.install(weights, load_leftovers(file.leftovers), inputs, None, file.rows)
    try:
        with torch.inference_mode():
            model.module(torch.arange(12).reshape(1, 12))
    finally:
        switch.restore()


def _sparse(rng: random.Random, home: Path) -> Finding | None:
    """A file of many gigabytes, of which hardly any lie on the disk."""
    entries, body, length = parts(rng.choice(_valid(home))[0])
    size = rng.choice([1 << 30, 7 << 30, 60 << 30])
    name = rng.choice([n for n in entries if n != "__metadata__"])
    if rng.random() < 0.5:  # a header that stands for all of it
        last = list(entries)[-1]
        start = entries[last]["data_offsets"][0]
        entries[last] = {"dtype": "U8", "shape": [size - start], "data_offsets": [start, size]}
        data = joined(entries, b"", length)
    elif rng.random() < 0.5:
        entries[name]["shape"] = [size]
        data = joined(entries, body, length)
    else:  # a header of gigabytes
        data = struct.pack("<Q", size - 8) + joined(entries, body, length)[8:]
    path = home / "sparse.safetensors"
    path.write_bytes(data)
    os.truncate(path, len(data) + size)
    model, switch = _model()

    def check() -> str:
        accepted = reads(lambda: read(path, model.layers, switch.full_leftovers()))
        accepted = accepted or reads(lambda: read(path, model.layers))
        return "a file of gigabytes is accepted" if accepted else ""

    found = finding(data, check)
    path.unlink()
    return found
