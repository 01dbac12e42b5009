from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from properties import examples
from quant_toys import FORMATS, Talker, Tied, Toy, model_file, thorough
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import nn

from fedsim.errors import FedsimError, ModelFileError
from fedsim.quant.activations import FLOAT, InputFormat, Range, make_range
from fedsim.quant.layers import Layer
from fedsim.quant.modelfile import (
    Manifest,
    ModelFile,
    fingerprint,
    load_leftovers,
    model_sizes,
    read,
    read_manifest,
    store_leftovers,
    write,
)
from fedsim.quant.packing import pack
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.weights import PackedWeight, dequantize_weight

INPUTS = (
    InputFormat(8, make_range(-1.5, 2.25)),
    InputFormat(16, make_range(0.0, 0.1)),
    FLOAT,
    InputFormat(7),
)
"""Static ranges at two depths, an input in floats, and one whose vectors have ranges of their
own."""


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Toy, ModelFile, bytes]:
    """A toy, the contents of its file, and the file's bytes."""
    toy = Toy(Talker())
    model = model_file(toy, (3, 8, 16, 5), inputs=INPUTS, settings={"language": "it"})
    path = tmp_path_factory.mktemp("written") / "toy.safetensors"
    write(path, toy.layers, model)
    return toy, model, path.read_bytes()


def same(a: ModelFile, b: ModelFile) -> None:
    assert a.manifest == b.manifest
    assert a.inputs == b.inputs
    assert a.leftovers.keys() == b.leftovers.keys()
    for name, tensor in a.leftovers.items():
        assert tensor.dtype == b.leftovers[name].dtype
        assert tensor.shape == b.leftovers[name].shape
        assert torch.equal(tensor, b.leftovers[name])
    for one, two in zip(a.weights, b.weights, strict=True):
        assert (one.shape, one.bits, one.format) == (two.shape, two.bits, two.format)
        assert (one.zeros is None) == (two.zeros is None) == (not one.format.zero_points)
        assert one.zeros is None or np.array_equal(one.zeros, two.zeros)
        assert one.payload.tobytes() == two.payload.tobytes()
        assert one.scales.tobytes() == two.scales.tobytes()


@settings(
    thorough, max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.tuples(*[st.integers(2, 16)] * 4), st.sampled_from(FORMATS))
def test_round_trip(tmp_path, bits, weight_format):
    toy = Toy(Talker())
    model = model_file(toy, bits, weight_format, INPUTS, {"a": [1, None, "ü"]})
    path = tmp_path / "a.safetensors"
    nbytes = write(path, toy.layers, model)
    assert nbytes == os.path.getsize(path)
    back = read(path, toy.layers)
    same(back, model)
    assert read_manifest(path) == model.manifest
    for layer, packed in zip(toy.layers, back.weights, strict=True):
        full = toy.module.get_submodule(layer.name).weight
        expected = dequantize_weight(quantize_weight(full, packed.bits, weight_format))
        assert torch.equal(dequantize_weight(packed), expected)
    rest = load_leftovers(back.leftovers)
    assert torch.equal(rest["mid.bias"], toy.module.mid.bias.detach().half().float())


def test_what_is_read_may_be_written_again(written, tmp_path):
    toy, _, data = written
    (tmp_path / "a").write_bytes(data)
    write(tmp_path / "b", toy.layers, read(tmp_path / "a", toy.layers))
    assert (tmp_path / "b").read_bytes() == data


def test_leftovers_are_halved_where_that_is_finite():
    rest = {
        "small": torch.tensor([1 / 3, -2.0]),
        "large": torch.tensor([1.0, 70_000.0]),  # float16 ends at 65,504
        "brain": torch.tensor([1e30]).bfloat16(),
        "double": torch.tensor([0.1], dtype=torch.float64),
        "mask": torch.tensor([0.0, -torch.inf]),
        "count": torch.tensor(3),
        "flags": torch.tensor([True, False]),
        "strided": torch.arange(6.0).reshape(2, 3).T,
    }
    stored = store_leftovers(rest)
    kinds = {name: t.dtype for name, t in stored.items()}
    assert kinds == {
        "small": torch.float16,
        "large": torch.float32,
        "brain": torch.float32,
        "double": torch.float16,
        "mask": torch.float32,
        "count": torch.int64,
        "flags": torch.bool,
        "strided": torch.float16,
    }
    assert torch.equal(stored["large"], rest["large"])
    assert torch.equal(stored["mask"], rest["mask"])
    assert torch.equal(stored["small"], rest["small"].half())
    loaded = load_leftovers(stored)
    assert {t.dtype for n, t in loaded.items() if n not in ("count", "flags")} == {torch.float32}
    assert torch.equal(loaded["strided"], rest["strided"])
    assert loaded["count"].dtype == torch.int64


class Odd(nn.Module):
    """A model with all sorts of leftovers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 5, 2)
        self.norm = nn.BatchNorm1d(5)
        self.register_buffer("steps", torch.tensor(12345678901))
        self.register_buffer("ids", torch.arange(7)[None])
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("large", torch.tensor([1e6, 2.0]))
        self.register_buffer("levels", torch.arange(5, dtype=torch.uint8))
        self.register_buffer("small", torch.arange(3, dtype=torch.int32))
        self.register_buffer("nothing", torch.zeros(0, 4))
        self.head = nn.Linear(5, 3)


def test_every_type_of_leftover(tmp_path):
    toy = Toy(Odd())
    model = model_file(toy, (4, 5), inputs=(InputFormat(8, make_range(-1, 1)), FLOAT))
    path = tmp_path / "odd.safetensors"
    nbytes = write(path, toy.layers, model)
    same(read(path, toy.layers), model)
    sizes = model_sizes(toy.layers, model.leftovers, model.manifest, (4, 5))
    assert sizes.total((4, 5)) == nbytes == os.path.getsize(path)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    width = {"I64": 8, "F32": 4, "I32": 4, "F16": 2, "U8": 1, "BOOL": 1}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":  # a memory map of the file can be used as it lies
            assert (8 + length + entry["data_offsets"][0]) % width[entry["dtype"]] == 0
    tensors = load_file(path)
    assert tensors["steps"] == 12345678901
    assert tensors["large"].dtype == np.float32
    assert tensors["norm.running_var"].dtype == np.float16


def test_a_type_that_no_file_holds(tmp_path):
    toy = Toy(Talker())
    model = model_file(toy, (4, 4, 4, 4))
    odd = {"z": torch.zeros(2, dtype=torch.complex64)}
    strange = replace(model, leftovers=model.leftovers | odd)
    with pytest.raises(FedsimError, match=r"'z' of type complex64 .*convert it to one of"):
        write(tmp_path / "a", toy.layers, strange)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_another_reader_finds_everything(weight_format, tmp_path):
    toy = Toy(Talker())
    model = model_file(toy, (3, 8, 16, 5), weight_format, INPUTS)
    path = tmp_path / "a.safetensors"
    write(path, toy.layers, model)
    with safe_open(path, framework="pt") as file:
        meta = file.metadata()
        names = set(file.keys())
        codes = {layer.name: file.get_tensor(f"{layer.name}.codes") for layer in toy.layers}
        ranges = file.get_tensor("fedsim.ranges")
        scales = file.get_tensor("fedsim.scales")
        input_bits = file.get_tensor("fedsim.input_bits")
        bias = file.get_tensor("mid.bias")
    assert meta["format"] == "fedsim-model/2"
    manifest = json.loads(meta["manifest"])
    assert manifest["bits"] == [3, 8, 16, 5]
    assert manifest["granularity"] == weight_format.granularity
    assert manifest["zero_points"] == weight_format.zero_points
    assert names == {
        *(f"{layer.name}.codes" for layer in toy.layers),
        *model.leftovers,
        "fedsim.ranges",
        "fedsim.scales",
        "fedsim.input_bits",
    }
    for layer, packed in zip(toy.layers, model.weights, strict=True):
        assert codes[layer.name].dtype == torch.uint8
        zeros = b"" if packed.zeros is None else pack(packed.zeros, packed.bits).tobytes()
        assert bytes(codes[layer.name].numpy()) == packed.payload.tobytes() + zeros
    assert ranges[2:].isnan().all()
    assert [tuple(row) for row in ranges[:2].tolist()] == [
        (i.range.low, i.range.high) for i in INPUTS[:2]
    ]
    assert (input_bits.dtype, input_bits.tolist()) == (torch.uint8, [8, 16, 0, 7])
    assert scales.dtype == torch.float16
    assert scales.tolist() == [s for w in model.weights for s in w.scales.ravel().tolist()]
    assert torch.equal(bias, model.leftovers["mid.bias"])


# ---- the size, to the byte


@st.composite
def models(draw):
    """Layers, leftovers, a legal set of depths, a plan."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layers = []
    for i in range(draw(st.integers(1, 6))):
        shape = tuple(draw(st.lists(st.integers(1, 30), min_size=2, max_size=3)))
        kind = "conv1d" if len(shape) == 3 else draw(st.sampled_from(["linear", "embedding"]))
        layers.append(Layer(f"{'block.' * draw(st.integers(0, 3))}{i}", kind, shape))
    rest = {}
    for i in range(draw(st.integers(0, 12))):
        shape = tuple(draw(st.lists(st.integers(0, 40), max_size=2)))
        kind = draw(st.sampled_from(["half", "overflow", "int64", "int32", "bool"]))
        values = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
        values = {
            "half": values,
            "overflow": values * 0 + 1e9,
            "int64": (values * 100).long(),
            "int32": (values * 100).int(),
            "bool": values > 0,
        }[kind]
        rest[draw(st.sampled_from(["norm", "zulu", "alpha.beta"])) + f".{i}"] = values
    depths = draw(st.sampled_from([(4, 8), (8,), (2, 3, 4), tuple(range(2, 17)), (9, 10, 16)]))
    plan = tuple(draw(st.sampled_from(depths)) for _ in layers)
    how = draw(st.sampled_from(FORMATS))
    name = draw(st.sampled_from(["m", "a/very-long/model-id" * 7, 'quo"te\\ü', "0" * 64]))
    facts = how.granularity, how.zero_points, plan, {"window_s": None}
    manifest = Manifest(name, fingerprint(layers), *facts)
    return layers, store_leftovers(rest), depths, manifest


def contents(layers, rest, manifest, seed=0) -> ModelFile:
    rng, how = np.random.default_rng(seed), manifest.weight_format
    weights = []
    for layer, bits in zip(layers, manifest.bits, strict=True):
        codes = pack(rng.integers(0, 1 << bits, layer.n_weights), bits)
        scales = rng.random(how.grid(layer.shape)).astype(np.float16)
        zeros = rng.integers(0, 1 << bits, how.grid(layer.shape), np.uint16)
        kept = zeros if how.zero_points else None
        weights.append(PackedWeight(layer.shape, bits, how, codes, scales, kept))
    narrow = InputFormat(8, make_range(-1.0, 0.3))
    inputs = tuple(FLOAT if layer.kind == "embedding" else narrow for layer in layers)
    return ModelFile(manifest, tuple(weights), inputs, rest)


@settings(
    thorough,
    max_examples=examples(100),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(models())
def test_the_size_is_known_before_anything_is_packed(tmp_path, case):
    layers, rest, depths, manifest = case
    sizes = model_sizes(layers, rest, replace(manifest, bits=()), depths)
    model = contents(layers, rest, manifest)
    path = tmp_path / "model.safetensors"
    assert write(path, layers, model) == os.path.getsize(path) == sizes.total(manifest.bits)
    same(read(path, layers), model)
    with safe_open(path, framework="np") as file:
        assert set(file.keys()) >= set(rest)


@pytest.mark.parametrize("n_leftovers", [0, 1, 500])
@pytest.mark.parametrize("channels", [1, 60_000])
def test_the_size_where_many_small_leftovers_meet_many_scales(n_leftovers, channels, tmp_path):
    """Scales lie before the leftovers in the file: a digit more in every offset of theirs."""
    layers = [Layer("a", "linear", (channels, 2)), Layer("b", "linear", (3, 3))]
    rest = store_leftovers({f"r{i}": torch.ones(1) for i in range(n_leftovers)})
    manifest = Manifest("m", fingerprint(layers), "per_channel", False, (2, 16))
    sizes = model_sizes(layers, rest, manifest, tuple(range(2, 17)))
    for plan in [(2, 2), (2, 16), (16, 16)]:
        model = contents(layers, rest, replace(manifest, bits=plan))
        assert write(tmp_path / "m", layers, model) == sizes.total(plan)
        same(read(tmp_path / "m", layers), model)


def test_a_size_depends_neither_on_where_the_model_lies_nor_on_the_language(written, tmp_path):
    toy, file, _ = written
    settings = ({}, {"language": "it"}, {"language": "yue"})
    for names in (("m", "/home/somebody/models/m", "m" * 208), ("m" * 400,)):
        sizes, lengths = set(), set()
        for name, setting in product(names, settings):
            manifest = replace(file.manifest, model=name, settings=setting)
            sizes.add(model_sizes(toy.layers, file.leftovers, manifest, (4, 8)).fixed_bytes)
            lengths.add(write(tmp_path / "m", toy.layers, replace(file, manifest=manifest)))
            assert read_manifest(tmp_path / "m") == manifest
        assert len(sizes) == len(lengths) == 1


def test_everything_in_the_file_is_counted():
    toy = Toy(Talker())
    model = model_file(toy, (4, 4, 4, 4))
    sizes = model_sizes(toy.layers, model.leftovers, model.manifest, (2, 4))
    weights = [30, 72, 80, 50]  # 6*1*5, 8*3*3, 10*8, 5*10
    assert sizes.layer_bytes.tolist() == [[-(-n * d // 8) for d in (2, 4)] for n in weights]
    scales = 2 * (6 + 8 + 10 + 5)
    halves = 2 * (6 + 8 + 8 + 10 + 5)  # three biases and a norm
    header = sizes.fixed_bytes - scales - halves - 4 * (2 * 4 + 1) - 8
    assert header % 8 == 0
    assert 0 < header < 2000
    per_tensor = replace(model.manifest, granularity="per_tensor")
    smaller = model_sizes(toy.layers, model.leftovers, per_tensor, (2, 4))
    assert sizes.fixed_bytes - smaller.fixed_bytes in range(scales - 8 - 8, scales - 8 + 32)


# ---- damage


def refused(tmp_path, data: bytes, layers) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="download or make it again"):
        read(path, layers)
    with pytest.raises(ModelFileError, match="download or make it again"):
        read_manifest(path)


def test_every_truncation_is_found(written, tmp_path):
    toy, _, data = written
    for size in [*range(0, 40), *range(40, len(data) - 40, 7), *range(len(data) - 40, len(data))]:
        refused(tmp_path, data[:size], toy.layers)
    for more in (b"\0", b" ", b"\0" * 8, data):
        refused(tmp_path, data + more, toy.layers)


def flipped(data: bytes, bit: int) -> bytes:
    spoilt = bytearray(data)
    spoilt[bit // 8] ^= 1 << bit % 8
    return bytes(spoilt)


def test_every_flipped_bit_of_the_length_is_found(written, tmp_path):
    """The header is padded: a shorter one still parses, and every tensor would move."""
    toy, _, data = written
    for bit in range(64):
        refused(tmp_path, flipped(data, bit), toy.layers)
    (length,) = struct.unpack("<Q", data[:8])
    text = data[8 : 8 + length]
    for shorter in range(1, length - len(text.rstrip()) + 1):
        refused(tmp_path, struct.pack("<Q", length - shorter) + data[8:], toy.layers)


def test_flipped_bits_anywhere_are_found(written, tmp_path):
    toy, _, data = written
    path = tmp_path / "damaged.safetensors"
    digest = data.index(b'"sha256":"') + 10
    rng = np.random.default_rng(0)
    anywhere = rng.integers(64, 8 * len(data), 600).tolist()
    for bit in {*range(8 * digest, 8 * (digest + 64), 5), *anywhere}:
        path.write_bytes(flipped(data, bit))
        with pytest.raises(ModelFileError):
            read(path, toy.layers)


def test_padding_that_is_no_longer_blank_is_found(written, tmp_path):
    toy, _, data = written
    (length,) = struct.unpack("<Q", data[:8])
    at = 8 + length - 1
    if data[at : at + 1] == b" ":
        refused(tmp_path, data[:at] + b"\n" + data[at + 1 :], toy.layers)


def test_what_is_not_a_model_file(tmp_path):
    small = [b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]", b"\x04\0\0\0\0\0\0\0null"]
    for data in (b"", b"RIFF1234", *small, b"\xff" * 100):
        refused(tmp_path, data, Toy(Talker()).layers)


def test_a_safetensors_file_of_somebody_else(tmp_path):
    from safetensors.numpy import save

    for meta in (None, {"format": "pt"}, {"format": "pt", "sha256": "0" * 64}):
        refused(tmp_path, save({"a": np.zeros(3)}, meta), Toy(Talker()).layers)


def test_a_file_of_another_model(written, tmp_path):
    toy, _, data = written
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    for other in (Toy(Tied()), Toy(Talker(), keep=["head"])):
        with pytest.raises(ModelFileError, match=r"'toy'.*load it with the model it was made from"):
            read(path, other.layers)
    renamed = [replace(toy.layers[0], name="first"), *toy.layers[1:]]
    with pytest.raises(ModelFileError, match="load it with the model it was made from"):
        read(path, renamed)


@pytest.mark.parametrize("version", ["fedsim-model/1", "fedsim-model/3"])
def test_a_file_of_another_format(written, tmp_path, version):
    toy, _, data = written
    data = data.replace(b'"format":"fedsim-model/2"', f'"format":"{version}"'.encode())
    digest = data.index(b'"sha256":"') + 10
    blank = data[:digest] + b"0" * 64 + data[digest + 64 :]
    sha256 = hashlib.sha256(blank).hexdigest().encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(data[:digest] + sha256 + data[digest + 64 :])
    with pytest.raises(ModelFileError, match=rf"'{version}'.*use the version that wrote it"):
        read(path, toy.layers)


def test_a_missing_file_and_a_folder(tmp_path):
    layers = Toy(Talker()).layers
    with pytest.raises(ModelFileError, match=r"nowhere\.safetensors .*No such .*check the path"):
        read(tmp_path / "nowhere.safetensors", layers)
    with pytest.raises(ModelFileError, match=r"Is a directory.*check the path"):
        read(tmp_path, layers)


# ---- writing


def test_a_folder_that_cannot_be_written(tmp_path):
    toy = Toy(Talker())
    model = model_file(toy, (4, 4, 4, 4))
    (tmp_path / "file").write_text("no folder")
    for path in (tmp_path / "file" / "a.safetensors", tmp_path / "file" / "deep" / "a.safetensors"):
        with pytest.raises(FedsimError, match=r"choose a folder .* bytes free"):
            write(path, toy.layers, model)
    (tmp_path / "folder").mkdir()
    with pytest.raises(FedsimError, match=r"Is a directory.*choose a folder"):
        write(tmp_path / "folder", toy.layers, model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_folders_on_the_way_are_made(tmp_path):
    toy = Toy(Talker())
    path = tmp_path / "a" / "b" / "c.safetensors"
    write(path, toy.layers, model_file(toy, (4, 4, 4, 4)))
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("fails", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_file(fails, written, tmp_path, monkeypatch):
    toy, model, data = written
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    other = replace(model, inputs=(InputFormat(8, Range(-9.0, 9.0)),) * 4)
    with pytest.raises(FedsimError, match=r"No space left on device.*choose a folder"):
        write(path, toy.layers, other)
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("dies", ["replace", "fsync"])
def test_a_crash_while_writing_leaves_the_old_file(dies, written, tmp_path, monkeypatch):
    toy, model, data = written
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)

    def crash(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, dies, crash)
    other = replace(model, inputs=(InputFormat(8, Range(-9.0, 9.0)),) * 4)
    with pytest.raises(KeyboardInterrupt):
        write(path, toy.layers, other)
    monkeypatch.undo()
    assert path.read_bytes() == data
    write(path, toy.layers, other)
    assert read(path, toy.layers).inputs == other.inputs
