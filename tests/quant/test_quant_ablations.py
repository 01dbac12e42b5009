"""The measures of the ablations: what they answer to, what they leave alone, how they fail."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch
import toys
from quant_toys import Named, Talker, Toy, clips, n_hooks, talk
from torch import nn

from fedsim import personalize
from fedsim.errors import FedsimError
from fedsim.quant.measures import MEASURES, Observed
from fedsim.quant.model import Batch
from fedsim.quant.sensitivity import sense
from fedsim.speech.models.base import tuning_batches

DISTANCES = [name for name in MEASURES if MEASURES[name].change is not None]
LENGTHS = [61, 90, 47, 33, 80]


@pytest.mark.parametrize("measure", [*DISTANCES, "normality"])
def test_scale(measure):
    """The first two are in the output's unit, the others have none; a bias is no change."""
    toy = Toy(Talker())
    batch = talk(clips(LENGTHS))
    before = sense(toy, [batch], measure)
    toy.module.head.weight.data *= 4
    toy.module.head.bias.data *= 4
    after = sense(toy, [batch], measure)
    expected = [1, 1, 1, 4 if measure in ("l1", "l2") else 1]
    np.testing.assert_allclose(after / before, expected, rtol=1e-4)
    toy.module.head.bias.data += 100
    shifted = sense(toy, [batch], measure)
    if measure in ("l1", "l2", "normality", "kl"):
        np.testing.assert_allclose(shifted, after, rtol=0.01)
    else:
        assert shifted[3] < after[3] / 3


def state_of(module: nn.Module) -> list[tuple]:
    kept = [(k, t.data_ptr(), t.double().sum().item()) for k, t in module.state_dict().items()]
    return [*kept, *(sorted(vars(m)) for m in module.modules())]


@pytest.mark.parametrize("measure", DISTANCES)
def test_one_pass_that_leaves_the_model_as_it_was(measure):
    toy = Toy(Talker())
    before = state_of(toy.module)
    logits = [toy.forward(talk(clips(LENGTHS, s))) for s in range(3)]
    toy.forwards = 0
    seen = []
    forward = toy.forward
    toy.forward = lambda batch: seen.append(forward(batch)) or seen[-1]
    sense(toy, (talk(clips(LENGTHS, s)) for s in range(3)), measure)
    assert toy.forwards == 3
    assert all(torch.equal(a, b) for a, b in zip(seen, logits, strict=True))
    assert n_hooks(toy.module) == 0
    assert state_of(toy.module) == before


def test_the_model_is_as_it_was_after_an_error():
    class Fails(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            if "weight" in vars(self):
                raise RuntimeError("no memory")
            return super().forward(input)

    toy = Toy(Named(Fails(3, 3)))
    before = state_of(toy.module)
    with pytest.raises(RuntimeError):
        sense(toy, [Batch({"x": torch.randn(1, 4, 3)})], "l1")
    assert n_hooks(toy.module) == 0
    assert state_of(toy.module) == before


@pytest.mark.parametrize("measure", DISTANCES)
def test_an_output_that_is_not_finite_is_an_error(measure):
    toy = Toy(Talker())
    for bad in (float("nan"), float("inf")):
        spoilt = [*clips([64, 64, 64]), torch.full((64,), bad)]
        for batches in ([talk(spoilt)], [talk([c]) for c in spoilt]):
            with pytest.raises(FedsimError, match=r"'conv1'.*check the clips' level"):
                sense(toy, batches, measure)


@pytest.mark.parametrize("measure", DISTANCES)
def test_a_nan_that_the_sample_misses(measure):
    for wide in (4, 64):
        toy = Toy(Named(nn.Linear(4, wide)))
        batches = [Batch({"x": torch.randn(2, 500, 4)}) for _ in range(3)]
        batches[1].inputs["x"][1, 123, 2] = float("nan")
        with pytest.raises(FedsimError, match=r"'layer' outputs nan .*check the clips' level"):
            sense(toy, batches, measure, capacity=16)


@pytest.mark.parametrize("measure", DISTANCES)
def test_a_layer_that_is_never_reached_is_named(measure):
    toy = Toy(Talker())
    toy.module.spare = nn.Linear(3, 3)
    toy = Toy(toy.module)
    with pytest.raises(FedsimError, match=r"'spare'.*add the layer to model\.keep"):
        sense(toy, [talk(clips(LENGTHS))], measure)


def normality(values: np.ndarray) -> float:
    return MEASURES["normality"].value(Observed(np.asarray(values, np.float32), 0, 0))


def test_normality_of_known_distributions():
    """Distances from the normal distribution of the same mean and deviation, known in closed
    form or by its extremum."""
    normal = NormalDist()
    grid = (np.arange(20_000) + 0.5) / 20_000
    bell = np.array([normal.inv_cdf(p) for p in grid])
    assert normality(bell) < 1e-3
    assert normality(-5 + 0.01 * bell) < 1e-3
    assert normality([-1, 1] * 500) == pytest.approx(normal.cdf(1) - 0.5, abs=1e-6)
    # Exponential: F(x) = 1 - e^-x against Phi(x - 1), at most apart at x = 0: Phi(-1).
    # (Elsewhere less: the density of the normal exceeds e^-x only beyond.)
    x = np.linspace(0, 20, 200_001)
    phi = np.array([normal.cdf(v - 1) for v in x])
    apart = np.abs(1 - np.exp(-x) - phi).max()
    assert normality(-np.log1p(-grid)) == pytest.approx(apart, abs=1e-3)
    assert apart == pytest.approx(normal.cdf(-1), abs=1e-3)
    assert normality(np.full(1000, 0.1)) == pytest.approx(0.5)
    assert normality(np.zeros(7)) == pytest.approx(0.5)


@pytest.mark.parametrize("measure", [*DISTANCES, "normality"])
def test_personalize(speech, measure):
    model = speech("ctc-group")
    audio = toys.clips([0.3, 0.5, 0.44, 0.6])
    before = state_of(model.module)
    pm, again = (
        personalize(
            model,
            audio,
            budget_mb=0.0334,
            allocation="myqasr",
            rounding="nearest",
            calibration="minmax",
            sensitivity=measure,
        )
        for _ in range(2)
    )
    assert pm.bits == again.bits
    values = sense(model, tuning_batches(model, audio, None), measure)
    assert len(set(values)) == len(values)
    bits = np.array(list(pm.bits.values()))
    assert set(bits) == {7, 8}
    assert values[bits == 7].min() >= values[bits == 8].max()  # the largest give up first
    assert all(pm.transcribe(audio))
    assert state_of(model.module) == before
