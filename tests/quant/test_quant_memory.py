"""What the weights take while a device senses: worked out by hand, and against what is there."""

from __future__ import annotations

import pytest
from quant_toys import Tied, Toy

from fedsim.quant.memory import MODES, peak_bytes
from fedsim.quant.on_demand import on_demand, weight_of
from fedsim.quant.proxy import pack_proxy
from fedsim.quant.switch import Switch, switch_of


def test_by_hand():
    """A table of 12 x 4 that is the head too, a map of 4 x 4 with 4 biases."""
    toy = Toy(Tied())
    biases, head, mid = 16, 4 * 48, 4 * 16
    packed = (48 + 2 * 12) + (16 + 2 * 4)
    assert peak_bytes(toy.layers, Switch(toy).full_leftovers()) == {
        "full": biases + head + mid,
        "streamed": biases + head,
        "proxy": biases + packed + head,
    }


@pytest.mark.parametrize("name", ["ctc-group", "conformer", "whisper"])
def test_what_is_there(speech, name):
    """Every parameter and buffer of the model, counted whenever a weight comes."""
    model = speech(name)
    switch = switch_of(model)
    full = switch.full_weights()
    computed = peak_bytes(model.layers, switch.full_leftovers())
    assert tuple(computed) == MODES
    assert computed["full"] == switch.full_bytes()
    state = model.module.state_dict(keep_vars=True)
    tensors = {id(t): t for t in state.values()}.values()  # what modules share is there once
    with on_demand(model, lambda layer: full[layer.name]):
        there = []
        for layer in model.layers:
            weight_of(model.module.get_submodule(layer.name))
            there.append(sum(t.nbytes for t in tensors))
    assert computed["streamed"] == max(there)
    packed = pack_proxy(full, model.layers)
    assert computed["proxy"] == max(there) + sum(p.nbytes for p in packed.values())
