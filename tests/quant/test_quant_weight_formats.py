"""Packed weights of every width, grouping and sign: as numbers, as bytes, in a model file."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from properties import examples
from rounding_toys import GRANULARITIES, GROUP, Net, every_format, thorough, weights
from safetensors.numpy import load_file
from torch import nn

from fedsim.errors import FedsimError, ModelFileError
from fedsim.quant.activations import FLOAT, InputFormat, make_range
from fedsim.quant.bank import BlobStore, LayerBank, WeightCache, from_blob, to_blob
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.integers import as_integers, bytes_are_fast, integer_linear, integers_of
from fedsim.quant.layers import Layer
from fedsim.quant.modelfile import (
    ModelFile,
    fingerprint,
    model_sizes,
    read,
    read_manifest,
    store_leftovers,
    write,
)
from fedsim.quant.modelheader import Manifest
from fedsim.quant.rounding import ROUNDINGS
from fedsim.quant.rounding.plan import round_plan
from fedsim.quant.rounding.task import RoundingTask
from fedsim.quant.switch import Switch
from fedsim.quant.weights import (
    PackedWeight,
    code_bytes,
    dequantize_weight,
    pack_weight,
    signed_codes,
    stored_weight,
)

FORMATS = st.builds(WeightFormat, st.sampled_from(GRANULARITIES), st.booleans())
SHAPES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 150)),
    st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(1, 9)),
)


def columns_of(how: WeightFormat, k: int) -> np.ndarray:
    """Which column of the scales each input has, (k,)."""
    return np.arange(k) // GROUP.get(how.granularity, k)


def drawn(shape: tuple[int, ...], bits: int, how: WeightFormat, seed: int):
    """Codes, scales of either sign and zero points of any value, drawn at random."""
    rng = np.random.default_rng(seed)
    n, k = shape[0], int(np.prod(shape[1:]))
    grid = (1 if how.granularity == "per_tensor" else n, int(columns_of(how, k)[-1]) + 1)
    codes = rng.integers(0, 2**bits, (n, k))
    scales = (rng.standard_normal(grid) * 0.1).astype(np.float16)
    zeros = rng.integers(0, 2**bits, grid) if how.zero_points else None
    return codes, scales, zeros


def same(a: PackedWeight, b: PackedWeight) -> None:
    assert (a.shape, a.bits, a.format) == (b.shape, b.bits, b.format)
    assert a.payload.tobytes() == b.payload.tobytes()
    assert a.scales.shape == b.scales.shape
    assert a.scales.tobytes() == b.scales.tobytes()
    assert (a.zeros is None) == (b.zeros is None)
    if a.zeros is not None and b.zeros is not None:
        np.testing.assert_array_equal(a.zeros, b.zeros)


@settings(thorough, max_examples=examples(200))
@given(SHAPES, st.integers(2, 16), FORMATS, st.integers(0, 999))
def test_numbers_and_bytes_of_a_packed_weight(shape, bits, how, seed):
    n, k = shape[0], int(np.prod(shape[1:]))
    codes, scales, zeros = drawn(shape, bits, how, seed)
    packed = pack_weight(shape, bits, how, codes, scales, zeros)

    middle = 2 ** (bits - 1) if zeros is None else zeros.astype(np.int64)[:, columns_of(how, k)]
    steps = codes - middle
    expected = (steps * scales.astype(np.float64)[:, columns_of(how, k)]).reshape(shape)
    found = dequantize_weight(packed)
    assert found.dtype == torch.float32
    assert found.shape == shape
    # A product of 11 bits and up to 17: float32 rounds it once.
    np.testing.assert_array_equal(found.numpy(), expected.astype(np.float32))
    for step in (8, 64):  # in pieces
        assert torch.equal(dequantize_weight(packed, step=step), found)
    np.testing.assert_array_equal(signed_codes(packed, np.int32).reshape(n, k), steps)

    n_codes = -(-n * k * bits // 8)
    n_zeros = -(-scales.size * bits // 8) if how.zero_points else 0
    assert code_bytes(packed).nbytes == how.code_bytes(shape, bits) == n_codes + n_zeros
    assert packed.scales.nbytes == how.scale_bytes(shape) == 2 * scales.size
    assert how.grid(shape) == scales.shape
    assert how.n_scales(shape) == scales.size
    assert how.zero_bytes(shape, bits) == n_zeros
    assert packed.nbytes == n_codes + n_zeros + 2 * scales.size
    same(stored_weight(code_bytes(packed), packed.scales.reshape(-1), shape, bits, how), packed)

    layer = Layer("one", "linear" if len(shape) == 2 else "conv1d", shape)
    blob = to_blob(packed)
    assert len(blob) == packed.nbytes
    same(from_blob(blob, layer, bits, how), packed)
    for spoilt in (blob[:-1], blob + b"\0", b""):
        with pytest.raises(FedsimError, match=r"layer 'one' at .* its blob has .*; use the model"):
            from_blob(spoilt, layer, bits, how)


@thorough
@given(
    SHAPES, st.integers(2, 16), FORMATS, st.sampled_from(["nearest", "scaled"]), st.integers(0, 99)
)
def test_what_a_rounding_makes_comes_back(shape, bits, how, name, seed):
    (packed,) = ROUNDINGS[name].round([RoundingTask(weights(*shape, seed=seed), bits)], how)
    layer = Layer("one", "linear", shape)
    same(from_blob(to_blob(packed), layer, bits, how), packed)


class Small(nn.Module):
    """A linear layer, a grouped convolution, an embedding, and some leftovers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 4, 3, groups=2)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 150)
        self.tail = nn.Linear(150, 3, bias=False)


RANGES = (make_range(-1.5, 2.25), make_range(0.0, 0.1))
INPUTS = (FLOAT, InputFormat(8, RANGES[0]), InputFormat(16, RANGES[1]), InputFormat(8))


def contents(net: Net, bits: tuple[int, ...], how: WeightFormat, rounding: str) -> ModelFile:
    switch = Switch(net)
    manifest = Manifest("small", fingerprint(net.layers), how.granularity, how.zero_points, bits)
    return ModelFile(
        manifest,
        round_plan(switch.full_weights(), net.layers, bits, rounding, how, {}),
        INPUTS,
        store_leftovers(switch.full_leftovers()),
    )


@settings(
    thorough, max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.tuples(*[st.integers(2, 16)] * 4),
    FORMATS,
    st.sampled_from(["nearest", "scaled", "compensated"]),
)
def test_a_model_file_of_every_format(tmp_path, bits, how, rounding):
    net = Net(Small())
    model = contents(net, bits, how, rounding)
    path = tmp_path / "a.safetensors"
    nbytes = write(path, net.layers, model)
    depths = tuple(range(2, 17))
    # Known before anything is packed, from a manifest with another plan.
    other = replace(model.manifest, bits=(2,) * 4)
    sizes = model_sizes(net.layers, model.leftovers, other, depths)
    assert sizes.total(bits) == nbytes == os.path.getsize(path)

    back = read(path, net.layers)
    assert back.manifest == model.manifest == read_manifest(path)
    assert back.manifest.weight_format == how
    assert back.inputs == INPUTS
    for a, b in zip(back.weights, model.weights, strict=True):
        same(a, b)
    assert back.leftovers.keys() == model.leftovers.keys()
    again = tmp_path / "b.safetensors"
    write(again, net.layers, back)
    assert again.read_bytes() == path.read_bytes()

    # Another reader finds the same arrays, and nothing else takes room.
    arrays = load_file(path)
    assert arrays["fedsim.scales"].dtype == np.float16
    assert arrays["fedsim.input_bits"].tolist() == [i.bits for i in INPUTS]
    for layer, packed in zip(net.layers, model.weights, strict=True):
        assert arrays[f"{layer.name}.codes"].tobytes() == code_bytes(packed).tobytes()
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert 8 + length + sum(a.nbytes for a in arrays.values()) == nbytes


def first_version(net: Net) -> bytes:
    """A file of version 1: float32 scales, one depth for all inputs, in the manifest."""
    weight = {layer.name: layer for layer in net.layers}
    tensors = {
        "fedsim.ranges": np.full((4, 2), np.nan, "<f4"),
        "fedsim.scales": np.ones(4, "<f4"),
        **{f"{name}.codes": np.zeros(layer.n_weights, np.uint8) for name, layer in weight.items()},
    }
    manifest = {
        "model": "small",
        "fingerprint": fingerprint(net.layers),
        "granularity": "per_tensor",
        "activation_bits": 8,
        "bits": [8] * 4,
        "settings": {},
    }
    entries, offset = {}, 0
    for name, array in tensors.items():
        entries[name] = {
            "dtype": "F32" if array.dtype == np.float32 else "U8",
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    body = b"".join(array.tobytes() for array in tensors.values())

    def header(digest: str) -> bytes:
        text = {"format": "fedsim-model/1", "sha256": digest, "manifest": json.dumps(manifest)}
        data = json.dumps({"__metadata__": text, **entries}).encode()
        return data.ljust(-(-len(data) // 8) * 8)

    blank = header("0" * 64)
    first = struct.pack("<Q", len(blank))
    return first + header(hashlib.sha256(first + blank + body).hexdigest()) + body


def test_a_file_of_version_1_is_refused_in_one_sentence(tmp_path):
    net = Net(Small())
    path = tmp_path / "old.safetensors"
    path.write_bytes(first_version(net))
    assert load_file(path)["fedsim.scales"].tolist() == [1.0] * 4  # as whole as a file can be
    for attempt in (lambda: read(path, net.layers), lambda: read_manifest(path)):
        with pytest.raises(ModelFileError) as caught:
            attempt()
        assert str(caught.value) == (
            f"the model file {path} has format 'fedsim-model/1', and this version of fedsim reads "
            f"'fedsim-model/2'; use the version that wrote it"
        )


def test_a_bank_of_one_format_is_not_read_as_another(tmp_path):
    net, store = Net(Small()), BlobStore(tmp_path / "bank")
    how = WeightFormat("group_32", True)
    bank = LayerBank(Switch(net).full_weights(), net.layers, how, store)
    plan = (3, 5, 2, 4)
    names = bank.manifest(plan, "scaled")
    assert bank.manifest(plan, "scaled") == names
    assert not set(names) & set(bank.manifest(plan, "nearest"))
    for layer, bits, name in zip(net.layers, plan, names, strict=True):
        cache = WeightCache(store)
        found = cache.layer(name, layer, bits, how).weight
        (packed,) = ROUNDINGS["scaled"].round(
            [RoundingTask(Switch(net).full_weights()[layer.name], bits)], how
        )
        assert torch.equal(found, dequantize_weight(packed))
        for other in (WeightFormat("group_32"), WeightFormat("per_tensor", True)):
            with pytest.raises(FedsimError, match=r"use the model and the weight format"):
                WeightCache(store).layer(name, layer, bits, other)


@pytest.mark.skipif(
    not bytes_are_fast(), reason="this processor multiplies bytes no faster than floats"
)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_scales_of_either_sign_in_integers(bits, granularity):
    """Signed-full codes and a scale below zero; the code 0 stands for the largest weight."""
    w = weights(200, 170, seed=bits)
    for row in range(200):  # so that half of the scales are negative, by construction
        w[row, row % 170] = (1 if row % 2 else -1) * 2.0
    w[0, 0] = 2.5
    how = WeightFormat(granularity)
    (packed,) = ROUNDINGS["scaled"].round([RoundingTask(w, bits)], how)
    assert (packed.scales < 0).any()
    if granularity == "per_channel":
        assert (packed.scales > 0).any()
    assert signed_codes(packed, np.int32).min() == -(2 ** (bits - 1))
    layer = Layer("one", "linear", (200, 170))
    assert integers_of(layer, packed) is not None
    rng = make_range(-3.0, 4.0)
    generator = torch.Generator().manual_seed(bits)
    x, bias = torch.randn(30, 170, generator=generator), torch.randn(200, generator=generator)
    with torch.inference_mode():
        found = integer_linear(as_integers(packed), bias, rng, 8)(x)
    steps = torch.clamp(
        torch.round(x / np.float32(rng.scale(8))), -rng.zero_point(8), 255 - rng.zero_point(8)
    )
    sums = steps.long().numpy() @ signed_codes(packed, np.int64).T
    expected = sums * float(np.float32(rng.scale(8))) * packed.scales[:, 0].astype(np.float64)
    np.testing.assert_allclose(found, expected + bias.double().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", every_format(), ids=str)
def test_integers_serve_one_scale_per_channel_without_zero_points(how):
    layer = Layer("one", "linear", (256, 256))
    (packed,) = ROUNDINGS["scaled"].round([RoundingTask(weights(256, 256), 4)], how)
    plain = how.granularity in ("per_tensor", "per_channel") and not how.zero_points
    assert (integers_of(layer, packed) is not None) == (plain and bytes_are_fast())
