"""Model files whose hash is right and whose content is wrong: refused in one sentence, or equal."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from properties import examples
from quant_toys import Talker, Tied, Toy, model_file, thorough
from torch import nn

from fedsim.errors import ModelFileError
from fedsim.quant import modelchecks, modelparse
from fedsim.quant.activations import FLOAT, InputFormat, make_range
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.modelfile import (
    Manifest,
    ModelFile,
    fingerprint,
    read,
    read_manifest,
    store_leftovers,
    write,
)
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.rows import Rows, kept_rows
from fedsim.quant.switch import Switch

quick = settings(
    thorough,
    max_examples=examples(300),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
INPUTS = (
    InputFormat(8, make_range(-1.5, 2.25)),
    InputFormat(16, make_range(0.0, 0.1)),
    FLOAT,
    InputFormat(7),
)


class Mixed(Talker):
    """A talker with leftovers that are no floats, and one that is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.arange(5))
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("large", torch.tensor([1e6, 2.0]))


TOY = Toy(Mixed())
REST = Switch(TOY).full_leftovers()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> bytes:
    model = model_file(
        TOY, (3, 8, 16, 5), WeightFormat("group_32", True), INPUTS, {"language": "it"}
    )
    path = tmp_path_factory.mktemp("valid") / "toy.safetensors"
    write(path, TOY.layers, model)
    return path.read_bytes()


def parts(data: bytes) -> tuple[dict, dict, bytearray, int]:
    """Header, manifest, tensors and the header's length."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["manifest"])
    return header, manifest, bytearray(data[8 + length :]), length


def joined(header: dict, manifest: object, body: bytes, length: int) -> bytes:
    """The file of these parts, written as fedsim writes it, with the hash that belongs to it."""
    header["__metadata__"]["manifest"] = json.dumps(manifest, sort_keys=True)
    header["__metadata__"]["sha256"] = "0" * 64
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    return hashed(struct.pack("<Q", len(text)) + text + bytes(body))


def hashed(blank: bytes) -> bytes:
    digest = hashlib.sha256(blank).hexdigest().encode()
    return blank.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + digest, 1)


def refusal(tmp_path, data: bytes, toy: Toy = TOY, rest: dict | None = REST) -> str:
    """The one sentence with which a file is refused."""
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as caught:
        read(path, toy.layers, rest)
    text = str(caught.value)
    assert str(path) in text
    assert len(text) < 800
    text.encode()
    return text


def place(header: dict, name: str) -> int:
    return header[name]["data_offsets"][0]


def test_the_parts_of_a_file_make_the_same_file(data):
    header, manifest, body, length = parts(data)
    assert joined(header, manifest, body, length) == data


# ---- anything at all


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@quick
@given(st.data())
def test_any_change_of_a_header_is_refused_or_changes_nothing(data, tmp_path, drawn):
    """With another value, field or order somewhere, and a hash that is right."""
    header, manifest, body, length = parts(data)
    header = deepcopy(header)
    target = drawn.draw(
        st.sampled_from(["manifest", "settings", "bits", "entry", "order", "about"])
    )
    value = drawn.draw(json_values)
    match target:
        case "manifest":
            manifest[drawn.draw(st.sampled_from([*manifest, "more"]))] = value
        case "settings":
            manifest["settings"][drawn.draw(st.text(max_size=5))] = value
        case "bits":
            manifest["bits"][drawn.draw(st.integers(0, 3))] = value
        case "entry":
            names = [name for name in header if name != "__metadata__"]
            entry = header[drawn.draw(st.sampled_from(names))]
            entry[drawn.draw(st.sampled_from([*entry, "more"]))] = value
        case "order":
            names = drawn.draw(st.permutations(list(header)))
            header = {name: header[name] for name in names}
        case _:
            header["__metadata__"][drawn.draw(st.sampled_from(["format", "more"]))] = value
    path = tmp_path / "any.safetensors"
    path.write_bytes(joined(header, manifest, body, length))
    try:
        found = read(path, TOY.layers, REST)
    except ModelFileError:
        return
    write(tmp_path / "again", TOY.layers, found)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@quick
@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=4))
def test_any_change_of_numbers_is_refused_or_is_what_is_read(data, tmp_path, where, new):
    header, manifest, body, length = parts(data)
    at = where % (len(body) - len(new))
    body[at : at + len(new)] = new
    path = tmp_path / "any.safetensors"
    path.write_bytes(joined(header, manifest, body, length))
    try:
        found = read(path, TOY.layers, REST)
    except ModelFileError:
        return
    for weight in found.weights:
        assert np.isfinite(weight.scales).all()
        assert (weight.scales != 0).all()
    for how in found.inputs:
        assert how.bits in (0, *range(4, 17))
        assert how.range is None or -np.inf < how.range.low <= 0 <= how.range.high < np.inf
    write(tmp_path / "again", TOY.layers, found)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


# ---- one thing at a time


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("tensor", "value", "reason"),
    [
        ("fedsim.scales", np.float16(NAN), "the scales of layer 'conv1' are not all finite"),
        ("fedsim.scales", np.float16(INF), "the scales of layer 'conv1' are not all finite"),
        ("fedsim.scales", np.float16(0), "or one is 0"),
        ("fedsim.scales", np.float16(-0.0), "or one is 0"),
        ("fedsim.ranges", np.float32(NAN), "'conv1' has a range from nan to 2.25"),
        ("fedsim.ranges", np.float32(-INF), "has a range from -inf to 2.25"),
        ("fedsim.ranges", np.float32(0.5), "has a range from 0.5 to 2.25"),
        ("fedsim.ranges", np.float32([3, -1]), "has a range from 3 to -1"),
        ("fedsim.ranges", np.float32([NAN, NAN]), "'conv1' has bits and no range"),
        ("fedsim.input_bits", np.uint8(0), "'conv1' has a range and no bits"),
        ("fedsim.input_bits", np.uint8(1), "'conv1' has 1 bits"),
        ("fedsim.input_bits", np.uint8(3), "'conv1' has 3 bits"),
        ("fedsim.input_bits", np.uint8(17), "'conv1' has 17 bits"),
        ("mid.bias", np.float16(NAN), "'mid.bias' is not finite"),
        ("mid.bias", np.float16(INF), "'mid.bias' is not finite"),
        ("large", np.float32(NAN), "'large' is not finite"),
        ("places", np.int64(10**6), "'places' is not that of the model"),
        ("places", np.int64(-1), "'places' is not that of the model"),
        ("flags", np.uint8(0), "'flags' is not that of the model"),
        ("flags", np.uint8(2), "'flags' is neither true nor false"),
    ],
)
def test_a_number_that_no_writer_writes(data, tmp_path, tensor, value, reason):
    header, manifest, body, length = parts(data)
    at, new = place(header, tensor), np.asarray(value).tobytes()
    body[at : at + len(new)] = new
    assert reason in refusal(tmp_path, joined(header, manifest, body, length))


def test_a_table_of_embeddings_has_no_input(tmp_path):
    toy = Toy(nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3)))
    for how in (InputFormat(8), InputFormat(8, make_range(-1, 1))):
        write(tmp_path / "m", toy.layers, model_file(toy, (4, 4), inputs=(how, FLOAT)))
        text = refusal(tmp_path, (tmp_path / "m").read_bytes(), toy, None)
        assert "the input of layer '0' has 8 bits" in text


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("granularity", "group_0", "its granularity is unknown"),
        ("granularity", ["per_tensor"], "'granularity' is missing or not a text"),
        ("granularity", "per_tensor", "its index of tensors is not the one that belongs"),
        ("zero_points", 1, "zero_points is neither true nor false"),
        ("zero_points", False, "its index of tensors is not the one that belongs"),
        ("bits", [3, 8, 16], "3 bit depths for 4 layers"),
        ("bits", [], "0 bit depths for 4 layers"),
        ("bits", [3, 8, 16, 6], "its index of tensors is not the one that belongs"),
        ("bits", [3, 8, 17, 5], "its bit depths are not all from 2 to 16"),
        ("bits", [True, 8, 16, 5], "its bit depths are not all from 2 to 16"),
        ("bits", [3.0, 8, 16, 5], "its bit depths are not all from 2 to 16"),
        ("bits", "3465", "its bit depths are not all from 2 to 16"),
        ("model", "", "its manifest names no model"),
        ("model", "a\0b", "its manifest names no model"),
        ("model", "\ud800", "its manifest names no model"),
        ("model", "m" * 5000, "its manifest names no model"),
        ("fingerprint", 3, "'fingerprint' is missing or not a text"),
        ("fingerprint", "0" * 16, "load it with the model it was made from"),
        ("settings", [], "its settings are not all plain"),
        ("settings", {"x": {"y": 1}}, "its settings are not all plain"),
        ("settings", {"x": [[1]]}, "its settings are not all plain"),
        ("more", 1, "its manifest has other fields"),
    ],
)
def test_a_field_that_no_writer_writes(data, tmp_path, field, value, reason):
    header, manifest, body, length = parts(data)
    manifest[field] = value
    assert reason in refusal(tmp_path, joined(header, manifest, body, length))


def test_fields_that_are_missing(data, tmp_path):
    for field in parts(data)[1]:
        header, manifest, body, length = parts(data)
        del manifest[field]
        text = refusal(tmp_path, joined(header, manifest, body, length))
        assert "its manifest has other fields" in text
    header, _, body, length = parts(data)
    for manifest in ([], None, "x", 3):
        assert "other fields" in refusal(tmp_path, joined(header, manifest, body, length))


def test_tensors_under_each_others_names(data, tmp_path):
    header, manifest, body, length = parts(data)
    for a, b in [("conv1.codes", "mid.codes"), ("mid.bias", "conv1.bias"), ("flags", "places")]:
        entries = header | {a: header[b], b: header[a]}
        refusal(tmp_path, joined(entries, manifest, body, length))
        renamed = {{a: b, b: a}.get(name, name): entry for name, entry in header.items()}
        refusal(tmp_path, joined(renamed, manifest, body, length))


def test_tensors_that_overlap_or_leave_gaps(data, tmp_path):
    header, manifest, body, length = parts(data)
    entries = deepcopy(header)
    entries["mid.codes"]["data_offsets"] = entries["head.codes"]["data_offsets"]
    assert "not written as fedsim" in refusal(tmp_path, joined(entries, manifest, body, length))
    text = refusal(tmp_path, joined(header, manifest, body + b"\0\0\0", length))
    assert re.search(r"its header stands for [\d,]+ bytes, and it has", text)


@pytest.mark.parametrize("depth", [500, 100_000])
@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_json_that_is_deep(data, tmp_path, depth, opened):
    """Where a reader would recurse, in the header or in the manifest within it."""
    nested = opened * depth + "0" + {"[": "]"}.get(opened, "}") * depth
    header, manifest, body, length = parts(data)
    blank = joined(header, manifest, body, length)
    text = (
        blank[8 : 8 + length]
        .rstrip()
        .replace(b'"__metadata__":{', f'"__metadata__":{{"x":{nested},'.encode(), 1)
    )
    text = re.sub(rb'"sha256":"[^"]*"', b'"sha256":"' + b"0" * 64 + b'"', text)
    refusal(tmp_path, hashed(struct.pack("<Q", len(text)) + text + bytes(body)))
    header["__metadata__"]["manifest"] = ""
    inner = json.dumps(manifest).replace('"settings": {', f'"settings": {{"x": {nested},')
    header["__metadata__"] |= {"manifest": inner, "sha256": "0" * 64}
    text = json.dumps(header, separators=(",", ":")).encode()
    refusal(tmp_path, hashed(struct.pack("<Q", len(text)) + text + bytes(body)))


def test_the_same_header_in_other_words(data, tmp_path):
    """There is one way to write a header, so no name stands in it twice."""
    _, _, body, length = parts(data)
    text = data[8 : 8 + length].rstrip()
    blank = re.sub(rb'"sha256":"[^"]*"', b'"sha256":"' + b"0" * 64 + b'"', text)
    twice = blank[:-1] + b',"flags":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
    for other in (
        twice,
        blank.replace(b'","', b'", "'),
        blank + b"\n",
        blank.replace(b"mid.bias", b"mid\\u002ebias"),
    ):
        padded = other if other.endswith(b"\n") else other.ljust(length)
        refusal(tmp_path, hashed(struct.pack("<Q", len(padded)) + padded + bytes(body)))
    longer = blank.ljust(length + 8)
    text = refusal(tmp_path, hashed(struct.pack("<Q", len(longer)) + longer + bytes(body)))
    assert f"its header has {length + 8:,} bytes, not {length:,}" in text


# ---- memory


@pytest.mark.parametrize("size", [1 << 32, 60 << 30])
def test_a_file_of_gigabytes_takes_no_memory(data, tmp_path, size):
    """All of it hollow: an index that stands for it, a header as long, and what merely follows."""
    header, manifest, _, length = parts(data)
    path = tmp_path / "sparse.safetensors"
    last = list(header)[-1]
    start = place(header, last)
    entries = deepcopy(header)
    entries[last] |= {"shape": [size], "data_offsets": [start, start + size]}
    whole = joined(entries, manifest, b"", length)
    claims = struct.pack("<Q", size) + data[8:]
    limit = 64 << 20
    for content, total in (
        (whole, len(whole) + start + size),
        (claims, size + 8),
        (data, size),
    ):
        path.write_bytes(content)
        os.truncate(path, total)
        before = _peak()
        for rest in (REST, None):
            with pytest.raises(ModelFileError):
                read(path, TOY.layers, rest)
        assert _peak() - before < limit
    assert "more than any model file" in str(_refused_manifest(path, 60 << 30))


def _refused_manifest(path, size):
    os.truncate(path, size)
    with pytest.raises(ModelFileError) as caught:
        read_manifest(path)
    return caught.value


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_leftovers_that_nobody_knows_are_bounded(tmp_path):
    """A reader without the model's leftovers reads those of the file, up to a bound."""
    toy = Toy(Talker())
    model = model_file(toy, (3, 3, 3, 3))
    write(tmp_path / "m", toy.layers, model)
    header, manifest, _, length = parts((tmp_path / "m").read_bytes())
    count = modelchecks.MAX_LEFTOVER_BYTES // 2 + 1
    at = place(header, "mid.bias")
    header["mid.bias"] |= {"shape": [count], "data_offsets": [at, at + 2 * count]}
    names = [name for name in header if name != "__metadata__"]
    at += 2 * count
    for name in names[names.index("mid.bias") + 1 :]:
        start, end = header[name]["data_offsets"]
        header[name]["data_offsets"] = [at, at + end - start]
        at += end - start
    path = tmp_path / "large"
    path.write_bytes(joined(header, manifest, b"", length))
    os.truncate(path, path.stat().st_size + at)
    with pytest.raises(ModelFileError, match=r"its leftovers would take 1,073,\d+,\d+ bytes"):
        read(path, toy.layers)
    with pytest.raises(ModelFileError, match=r"whose 'mid.bias' differs"):
        read(path, toy.layers, Switch(toy).full_leftovers())


def test_a_header_is_bounded(data, tmp_path):
    _, _, body, length = parts(data)
    text = data[8 : 8 + length].ljust(modelparse.MAX_HEADER_BYTES + 1)
    refusal(tmp_path, struct.pack("<Q", len(text)) + text + bytes(body))


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero"):
        for attempt in (lambda p=path: read(p, TOY.layers), lambda p=path: read_manifest(p)):
            with pytest.raises(ModelFileError, match="it is not a regular file"):
                attempt()


# ---- rows


def _with_rows(tmp_path, kept: np.ndarray) -> tuple[Toy, bytes]:
    toy = Toy(Tied())
    how, rows, switch = WeightFormat("per_channel"), Rows("head", kept), Switch(toy)
    full = switch.full_weights()
    packed = tuple(
        quantize_weight(kept_rows(full[layer.name], layer, rows), 4, how) for layer in toy.layers
    )
    names = [layer.name for layer in toy.layers]
    manifest = Manifest("toy", fingerprint(toy.layers), "per_channel", False, (4,) * len(names))
    inputs = (FLOAT,) * len(names)
    rest = store_leftovers(switch.full_leftovers())
    write(tmp_path / "rows", toy.layers, ModelFile(manifest, packed, inputs, rest, rows))
    return toy, (tmp_path / "rows").read_bytes()


def test_rows_that_no_layer_has(tmp_path):
    toy, data = _with_rows(tmp_path, np.arange(12) % 4 == 1)
    rest = Switch(toy).full_leftovers()
    assert read(tmp_path / "rows", toy.layers, rest).rows.count == 3
    header, manifest, body, length = parts(data)
    at = place(header, "head.rows")
    for bits, reason in (
        (b"\0\0", "is malformed"),
        (b"\x22\xf0", "is malformed"),  # rows beyond the last
        (b"\xff\x0f", "its index of tensors"),  # more rows than there are codes
        (b"\x02\x00", "its index of tensors"),
    ):
        body[at : at + 2] = bits
        assert reason in refusal(tmp_path, joined(header, manifest, body, length), toy, rest)
    body[at : at + 2] = b"\x22\x02"
    assert read(tmp_path / "rows", toy.layers, rest).rows is not None
    moved = {{"head.rows": "mid.rows"}.get(name, name): entry for name, entry in header.items()}
    text = refusal(tmp_path, joined(moved, manifest, body, length), toy, rest)
    assert "it drops rows of a layer that needs all of them" in text


# ---- what stays legal


def test_legal_files_are_read(tmp_path):
    """An empty range, a negative scale, a mask that is not finite where the model's is not."""
    inputs = (
        InputFormat(8, make_range(0, 0)),
        InputFormat(4, make_range(-3e38, 3e38)),
        FLOAT,
        FLOAT,
    )
    model = model_file(TOY, (2, 16, 9, 4), inputs=inputs)
    model.weights[0].scales[0] = -0.25
    write(tmp_path / "m", TOY.layers, model)
    found = read(tmp_path / "m", TOY.layers, REST)
    assert found.inputs == inputs
    assert found.weights[0].scales[0, 0] == -0.25
    assert torch.isinf(found.leftovers["mask"]).any()
