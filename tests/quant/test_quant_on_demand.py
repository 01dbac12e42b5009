"""Weights that come when their layer is called: the right ones, one at a time, and gone again."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from quant_toys import Named, Talker, Tied, Toy, clips, n_hooks, outputs_of, talk
from torch import nn

from fedsim.quant.on_demand import on_demand, weight_of
from fedsim.quant.switch import Switch

IDS = {"x": torch.tensor([[1, 5, 3]])}


class Giver:
    """A source that gives copies of a model's own weights and remembers for whom."""

    def __init__(self, toy: Toy) -> None:
        self.full = {n: w.clone() for n, w in Switch(toy).full_weights().items()}
        self.names: list[str] = []

    def __call__(self, layer):
        self.names.append(layer.name)
        return self.full[layer.name].clone()


def weights_there(toy: Toy) -> list[str]:
    names = [layer.name for layer in toy.layers]
    return [name for name in names if toy.module.get_submodule(name).weight.numel()]


def test_answers_are_those_of_the_model():
    toy = Toy(Talker())
    batch = talk(clips([61, 90]))
    expected = toy.forward(batch)
    state = {k: (v.data_ptr(), v.clone()) for k, v in toy.module.state_dict().items()}
    with on_demand(toy, Giver(toy)):
        assert weights_there(toy) == []
        assert torch.equal(toy.forward(batch), expected)
    for key, value in toy.module.state_dict().items():
        assert value.data_ptr() == state[key][0]
        assert torch.equal(value, state[key][1])
    assert n_hooks(toy.module) == 0


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_one_weight_is_there_at_a_time(guard):
    toy = Toy(Talker())
    giver, seen = Giver(toy), []
    for layer in toy.layers:
        toy.module.get_submodule(layer.name).register_forward_hook(
            lambda *_, name=layer.name: seen.append((name, weights_there(toy)))
        )
    with on_demand(toy, giver), guard():
        for _ in range(3):
            toy.forward(talk(clips([61, 90])))
    order = ["conv1", "conv2", "mid", "head"] * 3
    assert seen == [(name, [name]) for name in order]  # and hooks behind the call find it
    assert giver.names == order


def test_what_was_given_is_let_go():
    """Of the memory behind the weights only one piece is in use, however many layers pass."""
    toy = Toy(Talker())
    rooms, in_use = [], []

    def give(layer):
        in_use.append(sum(ref() is not None for ref in rooms))
        room = np.ones(layer.shape, np.float32)
        rooms.append(weakref.ref(room))
        return torch.from_numpy(room)

    with on_demand(toy, give), torch.inference_mode():
        toy.forward(talk(clips([61])))
        toy.forward(talk(clips([61])))
    assert in_use == [0] * 8  # the last one went before the next was asked for
    assert all(ref() is None for ref in rooms)


def test_modules_that_share_a_weight():
    toy = Toy(Tied())
    expected = toy.module(**IDS)
    giver = Giver(toy)
    with on_demand(toy, giver):
        assert toy.module.table.weight.numel() == toy.module.head.weight.numel() == 0
        assert torch.equal(toy.module(**IDS), expected)
        assert giver.names == ["head", "mid", "head"]
        assert torch.equal(toy.module(**IDS), expected)
        assert giver.names == ["head", "mid", "head", "mid", "head"]  # it was there still
    assert toy.module.head.weight is toy.module.table.weight


def test_a_layer_that_is_called_several_times():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.a(self.b(self.a(self.a(x))))

    toy = Toy(Twice())
    x = torch.randn(2, 4, 3)
    expected, giver = toy.module(x), Giver(toy)
    with on_demand(toy, giver):
        assert torch.equal(toy.module(x), expected)
    assert giver.names == ["a", "b", "a"]


def test_a_layer_called_by_keyword():
    toy = Toy(Named(nn.Linear(3, 2)))
    x = torch.randn(4, 3)
    expected = toy.module(x)
    with on_demand(toy, Giver(toy)):
        assert torch.equal(toy.module(x), expected)


def test_what_is_no_layer_stays():
    toy = Toy(Talker(), keep=["mid"])
    giver = Giver(toy)
    batch = talk(clips([61]))
    kept = outputs_of(toy.module, lambda: toy.forward(batch))
    with on_demand(toy, giver):
        assert toy.module.mid.weight.numel() == 80
        again = outputs_of(toy.module, lambda: toy.forward(batch))
    assert "mid" not in giver.names
    for name, outs in kept.items():
        assert torch.equal(outs[0], again[name][0])


def test_a_source_that_fails_leaves_the_model_whole():
    toy = Toy(Talker())
    batch = talk(clips([61]))
    expected, giver = toy.forward(batch), Giver(toy)

    def fail(layer):
        if layer.name == "mid":
            raise MemoryError
        return giver(layer)

    with pytest.raises(MemoryError), on_demand(toy, fail):
        toy.forward(batch)
    assert n_hooks(toy.module) == 0
    assert torch.equal(toy.forward(batch), expected)
    with on_demand(toy, giver):
        assert torch.equal(toy.forward(batch), expected)


def test_after_a_failure_inside_the_weight_is_asked_for_again():
    toy = Toy(Talker())
    batch = talk(clips([61]))
    expected, giver = toy.forward(batch), Giver(toy)
    failures = [MemoryError]

    def fail_once(layer):
        if layer.name == "conv2" and failures:
            raise failures.pop()
        return giver(layer)

    with on_demand(toy, fail_once):
        with pytest.raises(MemoryError):
            toy.forward(batch)
        assert weights_there(toy) == []
        assert torch.equal(toy.forward(batch), expected)


def test_a_weight_out_of_turn():
    toy = Toy(Tied())
    full = toy.module.head.weight.clone()
    assert weight_of(toy.module.head) is toy.module.head.weight
    with on_demand(toy, Giver(toy)):
        for module in (toy.module.table, toy.module.head):
            assert torch.equal(weight_of(module), full)
        assert weight_of(toy.module.mid).shape == (4, 4)
        assert weights_there(toy) == ["mid"]
    assert weight_of(toy.module.head) is toy.module.head.weight


def test_one_source_at_a_time():
    toy, other = Toy(Talker()), Toy(Talker())
    batch = talk(clips([61]))
    expected = toy.forward(batch)
    with on_demand(toy, Giver(toy)):
        with pytest.raises(ValueError, match="close that context"), on_demand(toy, Giver(other)):
            pass
        with on_demand(other, Giver(other)):
            assert torch.equal(other.forward(batch), expected)
        assert torch.equal(toy.forward(batch), expected)
    assert n_hooks(toy.module) == n_hooks(other.module) == 0
