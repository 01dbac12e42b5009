from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quant_toys import FORMATS, PER_CHANNEL, PER_TENSOR, Tied, Toy, thorough

from fedsim.errors import FedsimError
from fedsim.quant.bank import BlobStore, LayerBank, WeightCache, from_blob, to_blob, verify
from fedsim.quant.layers import Layer
from fedsim.quant.packing import packed_bytes
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.switch import Switch
from fedsim.quant.weights import dequantize_weight

LAYER = Layer("layer", "linear", (6, 5))


@pytest.fixture
def store(tmp_path) -> BlobStore:
    return BlobStore(tmp_path / "bank")


def weight(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))


def test_a_blob_is_named_by_its_content(store):
    name = store.put(b"some bytes")
    assert name == hashlib.sha256(b"some bytes").hexdigest()
    assert store.get(name) == b"some bytes"
    first = (store.folder / name).stat()
    assert store.put(b"some bytes") == name
    assert (store.folder / name).stat().st_mtime_ns == first.st_mtime_ns  # not written again
    assert store.put(b"other bytes") != name
    assert sorted(p.name for p in store.folder.iterdir()) == sorted(
        hashlib.sha256(b).hexdigest() for b in (b"some bytes", b"other bytes")
    )


def test_many_writers_at_once(store):
    blobs = [bytes([i]) * 5000 for i in range(8)]
    threads = [threading.Thread(target=lambda: [store.put(b) for b in blobs]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(store.folder.iterdir())) == 8
    assert [store.get(hashlib.sha256(b).hexdigest()) for b in blobs] == blobs


@pytest.mark.parametrize("harm", ["flip", "cut", "grow", "empty"])
def test_a_damaged_blob_is_an_error(store, harm):
    data = to_blob(quantize_weight(weight(), 5, PER_CHANNEL))
    name = store.put(data)
    spoilt = {
        "flip": bytes([data[0] ^ 1]) + data[1:],
        "cut": data[:-1],
        "grow": data + b"\0",
        "empty": b"",
    }[harm]
    (store.folder / name).write_bytes(spoilt)
    with pytest.raises(FedsimError, match=rf"blob {name[:12]} .* is damaged; delete the file"):
        store.get(name)
    with pytest.raises(FedsimError, match="is damaged"):
        WeightCache(store).layer(name, LAYER, 5, PER_CHANNEL)


def test_a_blob_read_into_an_array(store):
    """Not verified, but as long as it should be."""
    values = np.arange(12, dtype="<f4")
    name = store.put(values.tobytes())
    room = np.full((5, 4), np.nan, "<f4")
    store.fill(room[1:4], name)
    np.testing.assert_array_equal(room[1:4].ravel(), values)
    assert np.isnan(room[[0, 4]]).all()
    for n in (0, 11, 13):
        with pytest.raises(FedsimError, match=rf"blob {name[:12]} .* is damaged"):
            store.fill(np.empty(n, "<f4"), name)
    with pytest.raises(FedsimError, match=r"blob bbbbbbbbbbbb cannot be read .*No such file"):
        store.fill(room, "b" * 64)
    verify(store, name, values.data)
    values[3] = 4
    with pytest.raises(FedsimError, match=rf"blob {name[:12]} .* is damaged"):
        verify(store, name, values.data)


@pytest.mark.parametrize(
    "name",
    ["", ".", "../secret", "/dev/zero", "a" * 63, "A" * 64, "a" * 65, "\0", "x" * 5000, "\ud800"],
)
def test_a_name_is_a_hash_and_no_path(store, name):
    """Names come in messages: none of them reaches another file."""
    store.folder.mkdir(exist_ok=True)
    (store.folder.parent / "secret").write_bytes(b"secret")
    room = np.empty(6, np.uint8)
    for attempt in (lambda: store.get(name), lambda: store.fill(room, name)):
        with pytest.raises(
            FedsimError, match=r"is not the name of a blob, .* run the same version"
        ) as caught:
            attempt()
        assert len(str(caught.value)) < 300
    assert name not in store


def test_a_blob_is_read_up_to_a_bound(store):
    name = store.put(b"x" * 100)
    assert store.get(name, 100) == b"x" * 100
    os.truncate(store.folder / name, 60 << 30)  # all of it hollow
    for bound in (100, 99):
        with pytest.raises(FedsimError, match=rf"is damaged or of another layer.* {bound} bytes"):
            store.get(name, bound)
    with pytest.raises(FedsimError, match="is damaged or of another layer"):
        store.get(name)
    with pytest.raises(FedsimError, match="is damaged or of another layer"):
        WeightCache(store).layer(name, LAYER, 5, PER_CHANNEL)


@pytest.mark.parametrize("value", [0, -0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weight_format", FORMATS)
def test_scales_that_no_rounding_gives_are_refused(value, weight_format, store):
    """The name of a blob is right for any content."""
    data = bytearray(to_blob(quantize_weight(weight(), 5, weight_format)))
    data[:2] = np.float16(value).tobytes()
    message = r"'layer' at 5 bits has scales in its blob that are not finite, or 0; use the model"
    with pytest.raises(FedsimError, match=message):
        from_blob(bytes(data), LAYER, 5, weight_format)
    with pytest.raises(FedsimError, match=message):
        WeightCache(store).layer(store.put(bytes(data)), LAYER, 5, weight_format)


@pytest.mark.parametrize("bits", [-3, 0, 1, 17, 10**9])
def test_a_depth_that_cannot_be_packed(bits, store):
    data = to_blob(quantize_weight(weight(), 5, PER_CHANNEL))
    with pytest.raises(FedsimError, match=f"bit depth of {bits} cannot be packed"):
        from_blob(data, LAYER, bits, PER_CHANNEL)
    with pytest.raises(FedsimError, match=f"bit depth of {bits} cannot be packed"):
        WeightCache(store).layer(store.put(data), LAYER, bits, PER_CHANNEL)


def test_one_blob_read_as_two_layers(store):
    """A sender may name one blob for two layers that take as many bytes: each has its shape."""
    turned = replace(LAYER, name="turned", shape=LAYER.shape[::-1])
    name = store.put(to_blob(quantize_weight(weight(), 8, PER_TENSOR)))
    cache = WeightCache(store)
    first = cache.layer(name, LAYER, 8, PER_TENSOR).weight
    second = cache.layer(name, turned, 8, PER_TENSOR).weight
    assert first.shape == LAYER.shape
    assert second.shape == turned.shape
    assert torch.equal(first.ravel(), second.ravel())
    assert cache.layer(name, LAYER, 8, PER_TENSOR).weight is first


def test_a_missing_blob_is_an_error(store):
    with pytest.raises(FedsimError, match=r"blob aaaaaaaaaaaa cannot be read .*No such file"):
        store.get("a" * 64)


def test_a_store_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FedsimError, match="cannot be written"):
        BlobStore(tmp_path / "file" / "bank").put(b"bytes")


@thorough
@given(st.integers(2, 16), st.sampled_from(FORMATS), st.integers(0, 99))
def test_blob_round_trip(bits, weight_format, seed):
    packed = quantize_weight(weight(seed), bits, weight_format)
    data, n = to_blob(packed), packed.scales.size
    zeros = packed_bytes(n, bits) if weight_format.zero_points else 0
    assert n == (1 if weight_format.granularity == "per_tensor" else 6)  # 5 inputs: one group
    assert len(data) == packed.nbytes == 2 * n + packed_bytes(30, bits) + zeros
    assert np.frombuffer(data[: 2 * n], "<f2").tolist() == packed.scales.ravel().tolist()
    back = from_blob(data, LAYER, bits, weight_format)
    assert (back.shape, back.bits, back.format) == (packed.shape, bits, weight_format)
    assert torch.equal(dequantize_weight(back), dequantize_weight(packed))
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(FedsimError, match=rf"'layer' at {bits} bits takes {len(data)} bytes"):
            from_blob(wrong, LAYER, bits, weight_format)


class Weights(dict):
    """Weights by layer name that remember which of them were asked for."""

    def __init__(self, weights) -> None:
        super().__init__(weights)
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> torch.Tensor:
        self.asked.append(name)
        return super().__getitem__(name)


def test_a_bank_that_is_made_again_packs_nothing_again(store):
    """It has the names of the first, and so does not read the weights, which others may be."""
    toy, names = Toy(Tied()), {}
    plan = (4,) * len(toy.layers)
    first = LayerBank(Switch(toy).full_weights(), toy.layers, PER_CHANNEL, store, names=names)
    found = first.manifest(plan, "nearest")
    again = LayerBank({}, toy.layers, PER_CHANNEL, store, names=names)
    assert again.manifest(plan, "nearest") == found
    with pytest.raises(KeyError):
        again.manifest((8,) * len(toy.layers), "nearest")


def test_bank_packs_each_layer_and_depth_once(store):
    toy = Toy(Tied())
    weights = Weights(Switch(toy).full_weights())
    bank = LayerBank(weights, toy.layers, PER_CHANNEL, store)
    first = bank.manifest((4, 8), "nearest")
    second = bank.manifest((4, 4), "nearest")
    assert weights.asked == ["head", "mid", "mid"]
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert bank.manifest((4, 8), "nearest") == first
    assert weights.asked == ["head", "mid", "mid"]
    for index, (layer, bits) in enumerate(zip(toy.layers, (4, 8), strict=True)):
        full = toy.module.get_submodule(layer.name).weight
        assert store.get(first[index]) == to_blob(quantize_weight(full, bits, PER_CHANNEL))
    again = LayerBank(Switch(Toy(Tied())).full_weights(), toy.layers, PER_CHANNEL, store)
    assert again.manifest((4, 8), "nearest") == first  # equal models share blobs
    other = LayerBank(Switch(toy).full_weights(), toy.layers, PER_TENSOR, store)
    assert other.manifest((4, 8), "nearest")[0] != first[0]


def blobs(store: BlobStore, n: int) -> list[str]:
    return [store.put(to_blob(quantize_weight(weight(i), 8, PER_TENSOR))) for i in range(n)]


def test_cache_gives_the_same_tensor_to_everyone(store):
    (name,) = blobs(store, 1)
    cache = WeightCache(store)
    first = cache.layer(name, LAYER, 8, PER_TENSOR)
    (store.folder / name).unlink()  # not read twice
    assert cache.layer(name, LAYER, 8, PER_TENSOR) is first
    assert torch.equal(first.weight, dequantize_weight(quantize_weight(weight(0), 8, PER_TENSOR)))


def test_cache_keeps_its_limit_and_drops_the_least_recently_used(store):
    names = blobs(store, 5)
    size = 30 * 4
    cache = WeightCache(store, limit=3 * size)
    kept = [cache.layer(n, LAYER, 8, PER_TENSOR) for n in names[:3]]
    cache.layer(names[0], LAYER, 8, PER_TENSOR)  # used again: 1 is now the oldest
    for path in store.folder.iterdir():
        if path.name != names[3]:
            path.unlink()  # what is gone from the cache cannot come back
    cache.layer(names[3], LAYER, 8, PER_TENSOR)
    assert cache.layer(names[0], LAYER, 8, PER_TENSOR) is kept[0]
    assert cache.layer(names[2], LAYER, 8, PER_TENSOR) is kept[2]
    with pytest.raises(FedsimError, match="cannot be read"):
        cache.layer(names[1], LAYER, 8, PER_TENSOR)
    # A tensor that was dropped lives on in the model that uses it.
    assert torch.equal(kept[1].weight, dequantize_weight(quantize_weight(weight(1), 8, PER_TENSOR)))
