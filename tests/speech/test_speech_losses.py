"""Tables of losses and moments of whole speech models, against the network changed in one place."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys

from fedsim import load_model
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.losses import weight_losses
from fedsim.quant.moments import second_moments
from fedsim.quant.rounding.independent import round_weight
from fedsim.speech.models.base import own_tokens, tuning_batches

CLIPS = toys.clips([0.4, 0.9, 0.5], seed=3)
HOW = WeightFormat("per_channel")


def batches(model, clips=CLIPS):
    language = "it" if model.needs_tokens else None
    return list(tuning_batches(model, clips, own_tokens(model, clips, language), language))


def kl(full: torch.Tensor, other: torch.Tensor) -> float:
    p, q = (z.double().log_softmax(-1) for z in (full, other))
    return float(F.kl_div(q, p, reduction="sum", log_target=True))


def by_brute_force(model, ready, index: int, weight: torch.Tensor) -> float:
    """The whole model, run as it is and with one layer's weight replaced in a copy."""
    layer = model.layers[index]
    module = copy.deepcopy(model.module)
    for name in (layer.name, *layer.aliases):
        module.get_submodule(name).weight = torch.nn.Parameter(weight, requires_grad=False)
    total = positions = 0.0
    with torch.inference_mode():
        for one in ready:
            answers = [
                model.answers(one, run(**one.inputs, **options).logits)
                for run in (model.module, module)
                for options in [{"use_cache": False} if model.needs_tokens else {}]
            ]
            total += kl(*answers)
            positions += len(answers[0])
    return total / positions


def assert_table(model, ready, depths, places) -> None:
    full = [model.module.get_submodule(a.name).weight.detach().clone() for a in model.layers]
    before = {name: t.clone() for name, t in model.module.state_dict().items()}
    model.forward(ready[0])  # transformers hangs up hooks of its own in the first pass
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules()]
    asked = set()

    def weight(index: int, depth: int) -> torch.Tensor:
        asked.add(index)
        return round_weight(full[index], depth, HOW)

    found = weight_losses(model, ready, depths, weight).values
    assert asked == set(range(len(full)))
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any("forward" in vars(m) for m in model.module.modules())
    after = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules()]
    assert after == hooks
    for index in places:
        for column, depth in enumerate(depths):
            expected = by_brute_force(model, ready, index, round_weight(full[index], depth, HOW))
            assert expected > 0
            assert found[index, column] == pytest.approx(expected, rel=5e-3, abs=2e-6), (
                model.layers[index].name,
                depth,
            )


@pytest.mark.parametrize(
    "name", ["ctc-group", "ctc-layer", "conformer", "classifier", "whisper", "whisper-english"]
)
def test_the_table_of_every_family(speech, name):
    """The tied embedding of Whisper, the last layer, too; padded and masked batches."""
    model = speech(name)
    n = len(model.layers)
    assert_table(model, batches(model), (2, 4), {*range(0, n, 2), n - 1})


def test_the_table_of_the_bundled_recognizer():
    model = load_model("bundled:ctc", batch_size=4)
    n = len(model.layers)
    assert_table(model, batches(model, CLIPS[:2]), (2, 3), (0, 3, n // 2, n - 2, n - 1))


@pytest.mark.parametrize("name", ["ctc-layer", "whisper"])
def test_padding_of_a_batch_counts_for_no_moments(speech, name):
    """One clip at a time gives the same, for every layer of the model."""
    model = speech(name)
    together = second_moments(model, batches(model))
    alone = [second_moments(model, batches(model, [clip])) for clip in CLIPS]
    assert set(together) == {a.name for a in model.layers if a.kind != "embedding"}
    for layer, found in together.items():
        rows = [one[layer].rows for one in alone]
        assert found.rows == sum(rows), layer
        mean = sum(one[layer].mean * n for one, n in zip(alone, rows, strict=True)) / sum(rows)
        scale = np.abs(mean).max()
        np.testing.assert_allclose(found.mean, mean, rtol=1e-3, atol=1e-3 * scale, err_msg=layer)
        np.testing.assert_array_equal(found.mean, found.mean.transpose(0, 2, 1))


def test_moments_of_whisper_by_hand(speech):
    """Of the encoder all frames of the window, its silence too; of the decoder the tokens."""
    model = speech("whisper")
    ready = batches(model)
    names = ["model.encoder.layers.0.fc1", "model.decoder.layers.1.fc2", "proj_out"]
    seen = {name: [] for name in names}
    modules = dict(model.module.named_modules())
    handles = [
        modules[n].register_forward_pre_hook(lambda _, args, n=n: seen[n].append(args[0]))
        for n in names
    ]
    with torch.inference_mode():
        for one in ready:
            model.forward(one)
    for handle in handles:
        handle.remove()
    found = second_moments(model, ready)
    for name in names:
        rows = []
        for one, x in zip(ready, seen[name], strict=True):
            used = (one.inputs["decoder_input_ids"] >= 0).sum(1)  # all, with the batch's padding
            tokens = one.frames_in.get("proj_out", used)
            counts = [x.shape[1]] * len(x) if ".encoder." in name else tokens.tolist()
            rows += [clip[:n].double().numpy() for clip, n in zip(x, counts, strict=True)]
        x = np.concatenate(rows)
        assert found[name].rows == len(x)
        if ".encoder." in name:
            assert len(x) == len(CLIPS) * toys.WINDOW * 50
        expected = x.T @ x / len(x)
        np.testing.assert_allclose(
            found[name].mean[0], expected, rtol=1e-3, atol=1e-4 * expected.max()
        )
