"""Full-precision models in half the bytes: what they are held and computed in, and what is made
from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toys

from fedsim.errors import FedsimError
from fedsim.personal import load_personalized, personalize
from fedsim.quant.bank import BlobStore
from fedsim.quant.calibrators import needs
from fedsim.quant.losses import weight_losses
from fedsim.quant.memory import peak_bytes
from fedsim.quant.onepass import one_pass
from fedsim.quant.proxy import pack_proxy, proxied
from fedsim.quant.rounding.independent import round_weight
from fedsim.quant.sensitivity import sense
from fedsim.quant.stream import store_weights, streamed
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import WeightFormat
from fedsim.speech.models import load_model
from fedsim.speech.models.base import own_tokens, transcribe_clips, tuning_batches

CLIPS = toys.clips([0.4, 0.55, 0.4])
HALVES = ("float16", "bfloat16")
PLAIN = {
    "allocation": "uniform",
    "rounding": "nearest",
    "weights": "per_channel",
    "zero_points": False,
    "bit_depths": [4],
}
"""Options by which a model file depends on the weights alone."""


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Name of a toy -> a folder with that toy, its weights stored as float16."""
    home = tmp_path_factory.mktemp("halves")
    return lambda name: toys.save(toys.MODELS[name](), home / name, half=True)


@pytest.fixture(scope="module")
def loaded(halves):
    """Name of a toy and a type -> the model."""
    folders = {name: halves(name) for name in ("ctc-layer", "whisper")}
    return lambda name, dtype: load_model(folders[name], dtype=dtype)


def batches(model):
    return list(tuning_batches(model, CLIPS, own_tokens(model, CLIPS, "en"), "en"))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["ctc-layer", "whisper"])
def test_held_and_computed_in_half_the_bytes(loaded, name, dtype):
    """And so counted; its transcripts are texts, its sensitivities close to those of float32."""
    full, half = loaded(name, "float32"), loaded(name, dtype)
    switch = switch_of(half)
    kinds = {weight.dtype for weight in switch.full_weights().values()}
    assert kinds == {getattr(torch, dtype)}
    assert switch.full_bytes() * 2 == switch_of(full).full_bytes()
    assert len(transcribe_clips(half, CLIPS, "en")) == 3
    with torch.inference_mode():
        assert half.forward(batches(half)[0]).dtype == getattr(torch, dtype)
    np.testing.assert_allclose(
        sense(half, batches(half)), sense(full, batches(full)), rtol=0.1, atol=0.02
    )


def mapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies in a memory map of a checkpoint."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(end, 16) for end in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < stop:
            return line.endswith(".safetensors")
    return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", ["ctc-group", "whisper", "conformer"])
def test_a_checkpoint_of_that_type_is_mapped(halves, name):
    """Its numbers are what they would be without; those of a weight norm are computed, and so
    copies, as all are in another type."""
    folder = halves(name)
    (folder / "other.safetensors").write_bytes(b"not one")
    half, full, other = (load_model(folder, dtype=d) for d in ("float16", "float32", "bfloat16"))
    state = half.module.state_dict()
    copies = {key for key, tensor in state.items() if not mapped(tensor)}
    assert len(copies) <= len(state) // 4
    assert bool(copies) == name.startswith("ctc")  # it has a weight norm
    for key, tensor in full.module.state_dict().items():
        kept = tensor.half() if tensor.is_floating_point() else tensor
        assert state[key].numpy().tobytes() == kept.numpy().tobytes()
    floats = [x for x in other.module.state_dict().values() if x.is_floating_point()]
    assert not any(mapped(tensor) for tensor in floats)


def test_a_model_made_from_it_is_computed_in_float32(loaded, tmp_path):
    """The weights of the checkpoint are float16, so both models hold the same numbers: one file is
    made from them, and it transcribes the same whatever it is loaded with."""
    full, half = loaded("whisper", "float32"), loaded("whisper", "float16")
    files = [tmp_path / "full.safetensors", tmp_path / "half.safetensors"]
    options = {"budget_mb": 4, "calibration": "dynamic", "language": "en", **PLAIN}
    for model, file in zip((full, half), files, strict=True):
        personalize(model, CLIPS, **options).save(file)
    assert files[0].read_bytes() == files[1].read_bytes()
    texts = [load_personalized(files[0], model).transcribe(CLIPS) for model in (full, half)]
    assert texts[0] == texts[1]
    assert {p.dtype for p in half.module.parameters()} == {torch.float16}  # as it was


@pytest.mark.parametrize("dtype", HALVES)
def test_statistics_are_kept_in_float32(loaded, dtype):
    """Rows, second moments and losses of a model whose activations are not."""
    model = loaded("ctc-layer", dtype)
    found = one_pass(
        model,
        batches(model),
        lambda m, b: [m.forward(x) for x in b],
        needs(["cosine"]),
        moments=True,
    )
    assert {one.rows.dtype for one in found.observed.values()} == {torch.float32}
    assert {one.mean.dtype for one in found.moments.values()} == {np.dtype("float32")}
    full = switch_of(model).full_weights()
    how = WeightFormat("per_channel")
    table = weight_losses(
        model,
        batches(model)[:1],
        (2, 4),
        lambda i, b: round_weight(full[model.layers[i].name], b, how),
        pairs=True,
    )
    assert np.isfinite(table.values).all()
    assert table.values[:, 0].sum() > table.values[:, 1].sum() > 0


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_from_storage_to_the_bit(loaded, tmp_path, dtype):
    """Streamed layers are those of the model in memory; a proxy's are put into its type."""
    model = loaded("ctc-layer", dtype)
    (batch, *_) = batches(model)
    full = switch_of(model).full_weights()
    names = store_weights(full, model.layers, BlobStore(tmp_path))
    with torch.inference_mode():
        whole = model.forward(batch)
        with streamed(model, BlobStore(tmp_path), names) as reading:
            assert torch.equal(model.forward(batch), whole)
        assert reading.bytes_read == sum(w.nbytes for w in full.values())
        with proxied(model, pack_proxy(full, model.layers)):
            assert model.forward(batch).dtype == whole.dtype


def test_peaks_count_the_bytes_of_the_type(loaded):
    model = loaded("ctc-layer", "bfloat16")
    rest = switch_of(model).full_leftovers()
    peaks = peak_bytes(model.layers, rest, 2)
    assert peaks["full"] == switch_of(model).full_bytes()
    largest = max(layer.n_weights for layer in model.layers)
    assert peaks["streamed"] == sum(t.nbytes for t in rest.values()) + 2 * largest


def test_weights_that_float16_cannot_hold(tmp_path):
    module = toys.wav2vec2("layer")
    with torch.no_grad():
        module.lm_head.weight[0, 0] = 1e6
    folder = toys.save(module, tmp_path / "large")
    with pytest.raises(FedsimError, match=r"too large for it \(first: 'lm_head.weight'\): use bf"):
        load_model(folder, dtype="float16")
    load_model(folder, dtype="bfloat16")


def test_a_type_that_there_is_not(halves):
    with pytest.raises(FedsimError, match="dtype is 'half'"):
        load_model("anything", dtype="half")
