"""Device mistakes, found without a GPU: each part of the method on a fake one (`fake_gpu`).

A tensor on the wrong device raises. Passes over the clips wait for the GPU once, at their end.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
from fake_gpu import GPU, fake_gpu

from fedsim.quant.activations import InputFormat, make_range
from fedsim.quant.bank import unpacked
from fedsim.quant.calibration import calibrate_layer
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.losses import input_losses, weight_losses
from fedsim.quant.measures import MEASURES, Measure
from fedsim.quant.moments import recording
from fedsim.quant.observe import LayerObservation, observe, observing
from fedsim.quant.rounding import on_gpu, on_gpu_search
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.rounding.task import RoundingTask
from fedsim.quant.sensitivity import quantiles, sense
from fedsim.quant.switch import Switch
from fedsim.speech.models.base import own_tokens, placed, tuning_batches

NAMES = (
    "ctc-layer",
    "whisper",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("ctc-group", "conformer", "classifier")),
)
CLIPS = toys.clips([0.2, 0.2, 0.3])


@pytest.fixture(scope="module")
def batches(speech):
    """Name of a toy -> its batches of three clips, on the processor, ready for a forward pass."""

    def batches_of(name: str):
        model = speech(name)
        tokens = own_tokens(model, CLIPS, "en")
        return [replace(b, alone=False) for b in tuning_batches(model, CLIPS, tokens, "en")]

    return batches_of


def there(model, batches):
    """The batches, on the GPU of the model."""
    return (placed(model.module, batch) for batch in batches)


@pytest.mark.parametrize("name", NAMES)
def test_sensing_waits_once(speech, batches, name):
    ready = batches(name)
    with fake_gpu(speech(name)) as gpu:
        model = gpu.model
        assert sense(model, there(model, ready)).shape == (len(model.layers),)
        assert dict(gpu.waits.counts) == {"fetched": len(model.layers)}  # one list of numbers
        alone = (replace(batch, alone=True) for batch in there(model, ready[:1]))
        sense(model, alone)
        assert set(gpu.waits.counts) == {"fetched"}


@pytest.mark.parametrize("measure", MEASURES.names())
def test_every_measure_is_computed_on_the_gpu(speech, batches, measure):
    ready = batches("ctc-layer")
    with fake_gpu(speech("ctc-layer")) as gpu:
        model = gpu.model
        sense(model, there(model, ready), measure)
        assert set(gpu.waits.counts) == {"fetched"}


def test_a_measure_on_the_wrong_device_raises(speech, batches):
    """These tests can fail: one tensor of the processor, and one number that is waited for."""
    ready, measure = batches("ctc-layer"), MEASURES["mean"]

    def forgetful(seen):
        return (seen.sample * torch.ones(len(seen.sample))).mean()

    def impatient(seen):
        return seen.sample.mean() * float(seen.sample.max())

    for name, mistake in (("forgetful", forgetful), ("impatient", impatient)):
        MEASURES.add(name, Measure(measure.value, "A mistake.", on_gpu=mistake))
    try:
        with fake_gpu(speech("ctc-layer")) as gpu:
            model = gpu.model
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                sense(model, there(model, ready), "forgetful")
            sense(model, there(model, ready), "impatient")
            assert set(gpu.waits.counts) > {"fetched"}
    finally:
        for name in ("forgetful", "impatient"):
            del MEASURES._entries[name]


def test_a_batch_that_stayed_behind_raises(speech, batches):
    ready = batches("ctc-layer")
    with fake_gpu(speech("ctc-layer")) as gpu:
        model = gpu.model
        with pytest.raises(RuntimeError, match=r"on the same device|numpy"):
            sense(model, ready)


def test_quantiles(speech, batches):
    """They end in one transfer, which fake tensors have no numbers for."""
    ready = batches("ctc-layer")
    with fake_gpu(speech("ctc-layer")) as gpu:
        model = gpu.model
        with pytest.raises(RuntimeError, match="numpy"):
            quantiles(model, there(model, ready))
        assert not gpu.waits.counts


@pytest.mark.parametrize("name", NAMES)
def test_observing_waits_once(speech, batches, name):
    ready = batches(name)
    with fake_gpu(speech(name)) as gpu:
        model = gpu.model
        with torch.inference_mode(), observing(model) as recorder:
            for batch in recorder.passing(there(model, ready)):
                model.forward(batch)
            assert not gpu.waits.counts
        for seen in recorder.observations().values():
            assert seen.rows is not None
            assert seen.rows.device.type == GPU.type
        assert set(gpu.waits.counts) == {"fetched"}


@pytest.mark.slow
def test_squared_gradients_stay_on_the_gpu(speech, batches):
    """The loss of a CTC model is the processor's, which waits; that of a classifier is not."""
    ready = batches("classifier")
    with fake_gpu(speech("classifier")) as gpu:
        model = gpu.model
        seen = observe(model, there(model, ready), fisher=True)
        assert all(one.fisher.device.type == GPU.type for one in seen.values())
        assert set(gpu.waits.counts) == {"fetched"}


@pytest.mark.parametrize("name", NAMES)
def test_second_moments_wait_once(speech, batches, name):
    ready = batches(name)
    with fake_gpu(speech(name)) as gpu:
        model = gpu.model
        with torch.inference_mode(), recording(model) as recorder:
            for batch in recorder.passing(there(model, ready)):
                model.forward(batch)
            assert not gpu.waits.counts
        assert all(mean.device.type == GPU.type for mean in recorder.means().values())
        assert set(gpu.waits.counts) == {"fetched"}


@pytest.mark.parametrize("name", ["ctc-layer", pytest.param("whisper", marks=pytest.mark.slow)])
def test_the_loss_table_waits_once_per_batch(speech, batches, name):
    """For which modules write into what they are given; the table itself is fetched at the end."""
    ready = batches(name)
    with fake_gpu(speech(name)) as gpu:
        model = gpu.model
        full = Switch(model).full_weights()

        def rounded(index: int, depth: int) -> torch.Tensor:
            weight = on_gpu.round_weight(
                full[model.layers[index].name], depth, WeightFormat("group_32")
            )
            assert weight.device.type == GPU.type
            return weight

        with pytest.raises(RuntimeError, match="numpy"):
            weight_losses(model, there(model, ready), (2, 4), rounded, pairs=True)
        assert set(gpu.waits.counts) <= {"fetched"}
        inputs = [InputFormat(8, make_range(-1, 2)) for _ in model.layers]
        with pytest.raises(RuntimeError, match="numpy"):
            input_losses(model, there(model, ready), inputs)
        assert set(gpu.waits.counts) <= {"fetched"}


@pytest.mark.parametrize(
    ("granularity", "zero_points"),
    [("per_tensor", False), ("per_channel", True), ("group_32", True)],
)
def test_roundings(granularity, zero_points):
    """Codes and scales are on the GPU until they are packed."""
    how = WeightFormat(granularity, zero_points)
    with fake_gpu() as gpu:
        weight = torch.empty(12, 40, device=GPU)
        moments = np.ones((1, 40, 40), np.float32)
        task = RoundingTask(weight, 3, moments)
        found = list(on_gpu.find_codes(task, how, on_gpu.whole_range))
        rule = on_gpu.largest_magnitude
        found += on_gpu.find_codes(task, how, rule)
        found += on_gpu.find_codes(
            task, how, lambda blocks, bits: on_gpu.least_squares(blocks, bits, zero_points=False)
        )
        assert not gpu.waits.counts
        found += on_gpu_search.round_together([task, task], how)[1]
        assert dict(gpu.waits.counts) == {"triangular": 1}  # whether the moments can be
        assert {x.device.type for x in found} == {GPU.type}
        for round_ in (on_gpu.nearest, on_gpu.scaled, on_gpu_search.compensated):
            with pytest.raises(RuntimeError, match="numpy"):
                round_([task], how)


@pytest.mark.parametrize("calibration", ["minmax", "cosine", "hessian"])
@pytest.mark.parametrize("shape", [(9, 6), (300, 6)])
def test_calibrating(calibration, shape):
    """A search waits after each of its three steps; with the Gram matrix and without."""
    with fake_gpu() as gpu:
        with GPU:
            module = torch.nn.Linear(shape[1], shape[0])
            seen = LayerObservation(
                -1.0, 2.0, torch.empty(40, 1, shape[1]), torch.empty(40, shape[0])
            )
            quantized = torch.empty(shape)
        layer = Layer("one", "linear", shape)
        found = calibrate_layer(calibration, layer, module, seen, lambda: quantized, 8)
        assert found.range is not None
        assert set(gpu.waits.counts) <= {"fetched"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "how",
    [InputFormat(8), pytest.param(InputFormat(8, make_range(-1, 2)), marks=pytest.mark.slow)],
    ids=str,
)
def test_a_delivered_model_transcribes_on_the_gpu(speech, name, how):
    """Weights, leftovers and inputs of a model that was packed; decoding asks for its tokens."""
    here = speech(name)
    ready = [batch for batch, _ in here.batches(CLIPS, "en")]
    full = Switch(here).full_weights()
    packed = [quantize_weight(full[a.name], 4, WeightFormat("per_channel")) for a in here.layers]
    with fake_gpu(here) as gpu:
        model = gpu.model
        switch = Switch(model)
        with torch.inference_mode():  # as calibrating asks for them
            dense = [unpacked(one, a, GPU) for one, a in zip(packed, here.layers, strict=True)]
        weights = {a.name: one.weight for a, one in zip(here.layers, dense, strict=True)}
        linear = {layer.name: how for layer in model.layers if layer.kind == "linear"}
        switch.install(weights, switch.full_leftovers(), linear)
        for batch in there(model, ready):
            assert len(model.transcribe(batch)) == len(batch.inputs[next(iter(batch.inputs))])
        switch.restore()
        for batch in there(model, ready):
            model.transcribe(batch)
        assert gpu.waits.counts


def test_a_layer_unpacked_for_a_gpu_is_computed_in_floats():
    layer = Layer("one", "linear", (256, 256))
    packed = quantize_weight(torch.zeros(256, 256), 4, WeightFormat("per_channel"))
    with fake_gpu():
        found = unpacked(packed, layer, GPU)
        assert found.integers is None
        assert found.weight.device.type == GPU.type
