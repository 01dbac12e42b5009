from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from quant_toys import Talker, Tied, Toy, clips, n_hooks, talk
from torch import nn

from fedsim.quant.activations import FLOAT, InputFormat, Range
from fedsim.quant.bank import BlobStore, LayerBank, WeightCache
from fedsim.quant.granularities import PER_CHANNEL
from fedsim.quant.modelfile import load_leftovers, store_leftovers
from fedsim.quant.switch import Switch, switch_of


def plan(toy: Toy, seed: int = 1) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights and leftovers that differ from the model's own."""
    switch = Switch(toy)
    generator = torch.Generator().manual_seed(seed)
    weights, rest = (
        {n: torch.randn(t.shape, generator=generator) for n, t in tensors.items()}
        for tensors in (switch.full_weights(), switch.full_leftovers())
    )
    return weights, rest


def test_what_is_installed_is_what_runs_and_restoring_is_exact():
    toy = Toy(Talker())
    batch = talk(clips([61, 90]))
    before = toy.forward(batch)
    state = {k: (v.data_ptr(), v.clone()) for k, v in toy.module.state_dict().items()}
    switch = Switch(toy)
    weights, rest = plan(toy)
    switch.install(weights, rest, {})

    other = Talker(seed=7).eval()
    other.load_state_dict({f"{n}.weight": w for n, w in weights.items()} | rest)
    assert torch.equal(toy.forward(batch), other(**batch.inputs))
    assert not torch.equal(toy.forward(batch), before)

    switch.restore()
    assert torch.equal(toy.forward(batch), before)
    for key, value in toy.module.state_dict().items():
        assert value.data_ptr() == state[key][0]
        assert torch.equal(value, state[key][1])


def test_one_model_after_another():
    toy = Toy(Talker())
    batch = talk(clips([61, 90]))
    switch, plan_of = Switch(toy), {seed: plan(toy, seed) for seed in (1, 2, 3)}
    answers = {}
    for seed in (1, 2, 1, 3, 2):
        switch.install(*plan_of[seed], {"mid": InputFormat(4, Range(-1.0, float(seed)))})
        answer = toy.forward(batch)
        assert torch.equal(answers.setdefault(seed, answer), answer)
    assert not torch.equal(answers[1], answers[2])


def test_weights_are_shared_not_copied(tmp_path):
    store = BlobStore(tmp_path)
    toys = [Toy(Talker(seed)) for seed in range(2)]
    layers = toys[0].layers
    bank = LayerBank(Switch(toys[0]).full_weights(), layers, PER_CHANNEL, store)
    names = bank.manifest((4, 5, 6, 7), "nearest")
    cache = WeightCache(store)
    pointers = []
    for toy in toys:
        switch = Switch(toy)
        weights = {
            layer.name: cache.layer(name, layer, bits, PER_CHANNEL).weight
            for layer, name, bits in zip(layers, names, (4, 5, 6, 7), strict=True)
        }
        switch.install(weights, switch.full_leftovers(), {})
        modules = [toy.module.get_submodule(layer.name) for layer in layers]
        pointers.append([module.weight.data_ptr() for module in modules])
        assert pointers[-1] == [weights[layer.name].data_ptr() for layer in layers]
    assert pointers[0] == pointers[1]


def test_tied_weights_are_both_switched():
    toy = Toy(Tied())
    switch = Switch(toy)
    assert set(switch.full_weights()) == {"head", "mid"}
    table = torch.randn(12, 4)
    weights = switch.full_weights() | {"head": table}
    switch.install(weights, switch.full_leftovers(), {})
    ids = torch.tensor([[1, 5]])
    assert torch.equal(toy.module.table(ids), table[ids])
    x = torch.randn(3, 4)
    assert torch.equal(toy.module.head(x), F.linear(x, table))
    assert toy.module.head.weight is toy.module.table.weight
    switch.restore()
    assert toy.module.head.weight is toy.module.table.weight
    assert not torch.equal(toy.module.table.weight, table)


def test_bytes_of_the_full_model_count_each_weight_once():
    toy = Toy(Tied())
    numbers = 12 * 4 + 4 * 4 + 4
    assert Switch(toy).full_bytes() == 4 * numbers
    kept = Toy(Tied(), keep=["head", "table"])
    assert Switch(kept).full_bytes() == 4 * numbers


def test_kept_tied_weights_are_installed_everywhere():
    toy = Toy(Tied(), keep=["head"])
    switch = Switch(toy)
    stored = load_leftovers(store_leftovers(switch.full_leftovers()))
    switch.install(switch.full_weights(), stored, {})
    full = switch.full_leftovers()
    (name,) = [n for n in stored if n in ("head.weight", "table.weight")]
    assert torch.equal(toy.module.head.weight, full[name].half().float())
    assert toy.module.head.weight is toy.module.table.weight


def test_ranges_quantize_the_input_of_their_layer_alone():
    toy = Toy(Talker())
    switch = Switch(toy)
    batch = talk(clips([64, 64]))
    inputs = {}

    def note(module, args, out):
        inputs[module] = (args[0].detach(), out.detach())

    handles = [m.register_forward_hook(note) for m in (toy.module.mid, toy.module.head)]
    full = switch.full_weights(), switch.full_leftovers()
    switch.install(*full, {"mid": InputFormat(4, Range(-0.7, 0.8))})
    toy.forward(batch)
    x, out = inputs[toy.module.mid]
    step = 1.5 / 15
    # 4 bits over -0.7 .. 0.8: S = 0.1, Z = -7, so codes stand for -0.7 .. 0.8.
    levels = torch.round(x / step)
    torch.testing.assert_close(x, levels * step, rtol=0, atol=1e-6)
    assert float(levels.min()) == -7
    assert float(levels.max()) == 8
    assert torch.equal(out, F.linear(x, toy.module.mid.weight, toy.module.mid.bias))
    other = inputs[toy.module.head][0]
    assert len(other.unique()) > 100
    for handle in handles:
        handle.remove()
    assert n_hooks(toy.module) == 1
    switch.install(*full, {"head": InputFormat(8, Range(-1, 1))})
    assert n_hooks(toy.module) == 1  # the last model's are gone
    switch.restore()
    assert n_hooks(toy.module) == 0


def test_inputs_without_a_format_stay_in_full_precision():
    toy = Toy(Talker())
    batch = talk(clips([64, 64]))
    before = toy.forward(batch)
    switch = Switch(toy)
    for inputs in ({}, {"mid": FLOAT, "conv1": FLOAT}):
        switch.install(switch.full_weights(), switch.full_leftovers(), inputs)
        assert n_hooks(toy.module) == 0
        assert torch.equal(toy.forward(batch), before)


def test_buffers_are_switched_too():
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 3, 1)
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x))

    toy = Toy(Normed())
    switch = Switch(toy)
    rest = switch.full_leftovers()
    assert rest["norm.num_batches_tracked"].shape == ()
    rest = rest | {
        "norm.running_mean": torch.tensor([1.0, 2.0, 3.0]),
        "norm.num_batches_tracked": torch.tensor(9),
    }
    x = torch.randn(1, 2, 4)
    before = toy.module(x)
    switch.install(switch.full_weights(), rest, {})
    shift = torch.tensor([1.0, 2.0, 3.0])[:, None] / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(toy.module(x), before - shift)
    assert int(toy.module.norm.num_batches_tracked) == 9
    switch.restore()
    assert torch.equal(toy.module(x), before)
    assert int(toy.module.norm.num_batches_tracked) == 0


def test_half_precision_leftovers_are_those_of_the_file():
    toy = Toy(Talker())
    switch = Switch(toy)
    stored = store_leftovers(switch.full_leftovers())
    switch.install(switch.full_weights(), load_leftovers(stored), {})
    assert toy.module.mid.bias.dtype == torch.float32
    assert torch.equal(toy.module.mid.bias, switch.full_leftovers()["mid.bias"].half().float())


def test_one_switch_a_model():
    toy = Toy(Talker())
    switch = switch_of(toy)
    full = switch.full_weights()["mid"]
    switch.install(*plan(toy), {})
    assert switch_of(toy) is switch
    assert switch_of(toy).full_weights()["mid"] is full  # not what is installed
    switch.restore()
    assert switch_of(Toy(Talker())) is not switch


@pytest.mark.parametrize("installed", [False, True])
def test_a_model_that_nobody_uses_is_let_go(installed):
    """A switch must not keep its model alive: a sweep over models would fill the memory."""
    toy = Toy(Talker())
    switch = switch_of(toy)
    if installed:
        switch.install(*plan(toy), {"mid": InputFormat(8, Range(-1.0, 1.0))})
    ghost, weight = weakref.ref(toy.module), weakref.ref(toy.module.mid.weight)
    del toy, switch
    gc.collect()
    assert ghost() is None
    assert weight() is None
