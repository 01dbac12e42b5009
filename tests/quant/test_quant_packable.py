"""What all model files of one model share: sizes to the byte, a manifest, leftovers."""

from __future__ import annotations

import os
import struct

import pytest
import torch
from quant_toys import Talker, Tied, Toy, model_file

from fedsim.quant.granularities import PER_CHANNEL, PER_TENSOR, WeightFormat
from fedsim.quant.layers import leftovers
from fedsim.quant.modelfile import ModelFile, fingerprint, read, write
from fedsim.quant.packable import PackableModel, packable
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.switch import switch_of

DEPTHS = (2, 3, 8, 16)


def packed(weight_format: WeightFormat = PER_CHANNEL, toy: Toy | None = None) -> PackableModel[Toy]:
    return packable(
        toy or Toy(Talker()),
        "models/talker",
        weight_format=weight_format,
        depths=DEPTHS,
        settings={"keep": [], "window_s": None},
    )


def contents(model: PackableModel[Toy], bits: tuple[int, ...], language: str | None) -> ModelFile:
    file = model_file(model.model, bits, model.weight_format)
    return ModelFile(model.manifest(bits, language), file.weights, file.inputs, model.stored)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "group_32"])
def test_sizes_are_those_of_the_files(granularity, zero_points, tmp_path):
    model = packed(WeightFormat(granularity, zero_points))
    layers = model.model.layers
    assert model.sizes.depths == DEPTHS
    for bits in [(2, 2, 2, 2), (16, 16, 16, 16), (3, 8, 2, 16)]:
        path = tmp_path / "a.safetensors"
        nbytes = write(path, layers, contents(model, bits, None))
        assert nbytes == os.path.getsize(path) == model.sizes.total(bits)
    scales = sum(model.weight_format.n_scales(layer.shape) for layer in layers)
    # No channel of the toy has more than 32 inputs.
    assert scales == (len(layers) if granularity == "per_tensor" else 6 + 8 + 10 + 5)


def test_a_language_does_not_change_the_length_of_the_header(tmp_path):
    model = packed()
    bits, files = (2, 3, 8, 16), {}
    for language in (None, "en", "yue"):
        path = tmp_path / f"{language}.safetensors"
        write(path, model.model.layers, contents(model, bits, language))
        files[language] = path.read_bytes()
        manifest = read(path, model.model.layers).manifest
        assert manifest == model.manifest(bits, language)
        assert manifest.settings.get("language") == language
    lengths = {language: struct.unpack("<Q", data[:8])[0] for language, data in files.items()}
    assert len(set(lengths.values())) == 1
    assert {len(data) for data in files.values()} == {model.sizes.total(bits)}
    bodies = {data[8 + lengths[language] :] for language, data in files.items()}
    assert len(bodies) == 1  # nothing but the header differs


def test_the_manifest_says_what_a_loader_needs():
    model = packed(WeightFormat("per_tensor", zero_points=True))
    manifest = model.manifest((2, 3, 8, 16))
    assert manifest.model == "models/talker"
    assert manifest.fingerprint == fingerprint(model.model.layers)
    assert (manifest.granularity, manifest.zero_points) == ("per_tensor", True)
    assert manifest.weight_format == model.weight_format == WeightFormat("per_tensor", True)
    assert packed(PER_TENSOR).manifest((2, 3, 8, 16)).zero_points is False
    assert manifest.bits == (2, 3, 8, 16)
    assert manifest.settings == {"keep": [], "window_s": None}
    spoken = model.manifest((2, 3, 8, 16), "it")
    assert spoken.settings == {"keep": [], "window_s": None, "language": "it"}
    assert "language" not in model.blank.settings


def test_leftovers_are_stored_in_half_precision_and_computed_with_in_single():
    toy = Toy(Talker())
    model = packed(toy=toy)
    full = leftovers(toy.module, toy.layers)
    assert model.stored.keys() == model.leftovers.keys() == full.keys()
    for name, tensor in full.items():
        assert torch.equal(model.stored[name], tensor.half())
        assert torch.equal(model.leftovers[name], tensor.half().float())
        assert model.leftovers[name].dtype == torch.float32


def test_modules_and_switch_are_the_models_own():
    toy = Toy(Tied())
    model = packed(toy=toy)
    assert model.switch is switch_of(toy)
    assert model.modules == {"head": toy.module.head, "mid": toy.module.mid}
    full = model.switch.full_weights()
    model.switch.install({n: w + 1 for n, w in full.items()}, model.leftovers, {})
    # Made while another client's model is in place: full precision all the same.
    again = packed(toy=toy)
    assert torch.equal(again.stored["mid.bias"], model.stored["mid.bias"])
    packed_head = quantize_weight(again.switch.full_weights()["head"], 8, PER_CHANNEL)
    expected = quantize_weight(full["head"], 8, PER_CHANNEL)
    assert packed_head.payload.tobytes() == expected.payload.tobytes()
