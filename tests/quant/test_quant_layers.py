from __future__ import annotations

import copy

import pytest
import torch
from quant_toys import Talker, Tied
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from fedsim.errors import FedsimError
from fedsim.quant.layers import SMALL_PARAMETER, find_layers, leftovers, plain_weights


class Holder(nn.Module):
    """Named children, in order; a forward pass is of no interest here."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def test_layers_of_the_three_kinds():
    model = Holder(
        conv=nn.Conv1d(4, 6, 3, groups=2),
        table=nn.Embedding(9, 4),
        norm=nn.LayerNorm(4),
        block=Holder(map=nn.Linear(4, 7, bias=False)),
    )
    layers = find_layers(model)
    assert [(layer.name, layer.kind, layer.shape, layer.aliases) for layer in layers] == [
        ("conv", "conv1d", (6, 2, 3), ()),
        ("table", "embedding", (9, 4), ()),
        ("block.map", "linear", (7, 4), ()),
    ]
    assert [layer.n_weights for layer in layers] == [36, 36, 28]
    assert [layer.channels for layer in layers] == [6, 9, 7]
    rest = leftovers(model, layers)
    assert list(rest) == ["conv.bias", "norm.weight", "norm.bias"]


def test_subclasses_count_as_what_they_are():
    class Scaled(nn.Linear):
        pass

    assert [a.kind for a in find_layers(Holder(a=Scaled(3, 2)))] == ["linear"]


def test_tied_weights_are_one_layer_the_head():
    layers = find_layers(Tied())
    assert [(a.name, a.kind, a.aliases) for a in layers] == [
        ("head", "linear", ("table",)),
        ("mid", "linear", ()),
    ]
    assert list(leftovers(Tied(), layers)) == ["mid.bias"]
    bank_of_three = Holder(a=nn.Linear(3, 3), b=nn.Linear(3, 3), c=nn.Linear(3, 3))
    bank_of_three.b.weight = bank_of_three.c.weight = bank_of_three.a.weight
    (layer,) = find_layers(bank_of_three)
    assert (layer.name, layer.aliases) == ("c", ("a", "b"))


def test_one_module_under_two_names_is_stored_once():
    model = Holder(a=nn.Linear(3, 3))
    model.b = model.a
    layers = find_layers(model)
    assert len(layers) == 1
    assert list(leftovers(model, layers)) == ["a.bias"]


def test_equal_weights_are_not_tied_weights():
    model = Holder(a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    model.b.weight.data = model.a.weight.data.clone()
    assert len(find_layers(model)) == 2


def test_keep():
    model = Holder(first=Talker(), second=Talker())
    everything = [a.name for a in find_layers(model)]
    assert len(everything) == 8
    assert [a.name for a in find_layers(model, ["first.*"])] == everything[4:]
    assert [a.name for a in find_layers(model, ["*.conv?", "second.head"])] == [
        "first.mid",
        "first.head",
        "second.mid",
    ]
    kept = find_layers(model, ["first.head"])
    assert "first.head" not in [a.name for a in kept]
    assert "first.head.weight" in leftovers(model, kept)


@pytest.mark.parametrize("kept", [["head"], ["table"], ["head", "table"], ["h*d"]])
def test_keeping_one_of_two_tied_layers_keeps_the_weight(kept):
    """The weight is one: kept in full precision here, it must not be quantized through there."""
    model = Tied()
    layers = find_layers(model, kept)
    assert [a.name for a in layers] == ["mid"]
    rest = leftovers(model, layers)
    shared = [k for k in rest if k in ("head.weight", "table.weight")]
    assert len(shared) == 1  # and it is stored once


@pytest.mark.parametrize(
    ("keep", "hint"),
    [
        ("frist.conv1", "did you mean 'first.conv1'"),
        ("*.conv9", "no layer is called"),
        ("first", "did you mean"),  # a container, no layer: silence would quantize all of it
        ("", "no layer is called"),
    ],
)
def test_keep_that_matches_no_layer(keep, hint):
    with pytest.raises(FedsimError, match=r"^keep: ") as raised:
        find_layers(Holder(first=Talker()), [keep])
    assert hint in str(raised.value)
    assert repr(keep) in str(raised.value)


@pytest.mark.parametrize(
    ("module", "kind", "weight"),
    [
        (nn.LSTM(160, 160), "LSTM", "weight_ih_l0"),
        (nn.Conv2d(64, 128, 3), "Conv2d", "weight"),
        (nn.ConvTranspose1d(128, 128, 5), "ConvTranspose1d", "weight"),
        (nn.MultiheadAttention(160, 4), "MultiheadAttention", "in_proj_weight"),
    ],
)
def test_a_large_layer_of_unknown_type(module, kind, weight):
    model = Holder(front=nn.Linear(3, 3), odd=module)
    with pytest.raises(FedsimError) as raised:
        find_layers(model)
    text = str(raised.value)
    assert "layer 'odd' is of unknown type " + kind in text
    assert repr(weight) in text
    assert "add 'odd' to model.keep" in text
    layers = find_layers(model, ["odd", "odd.*"] if kind == "MultiheadAttention" else ["odd"])
    assert [a.name for a in layers] == ["front"]
    assert f"odd.{weight}" in leftovers(model, layers)


def test_a_small_layer_of_unknown_type_is_a_leftover():
    norm = nn.LayerNorm(SMALL_PARAMETER + 1)
    model = Holder(front=nn.Linear(3, 3), odd=nn.Conv2d(1, 4, 3), norm=norm)
    layers = find_layers(model)
    assert [a.name for a in layers] == ["front"]
    assert "odd.weight" in leftovers(model, layers)


def test_no_layer_at_all():
    with pytest.raises(FedsimError, match=r"Holder .*choose a model with conv1d, embedding"):
        find_layers(Holder(norm=nn.LayerNorm(4)))
    with pytest.raises(FedsimError, match="keep fewer"):
        find_layers(Tied(), ["*"])


@pytest.mark.parametrize("dim", [0, 2])
@pytest.mark.parametrize("frozen", [True, False])
def test_weight_norm_is_folded(dim, frozen):
    torch.manual_seed(0)
    plain = Holder(conv=nn.Conv1d(4, 6, 3), head=nn.Linear(6, 2))
    model = copy.deepcopy(plain)
    weight_norm(model.conv, dim=dim)
    model.conv.parametrizations.weight.original0.data *= 1.7  # as training leaves it
    model.requires_grad_(not frozen)
    x = torch.randn(2, 4, 9)
    before = model.conv(x)
    assert plain_weights(model) is model
    assert not any(parametrize.is_parametrized(m) for m in model.modules())
    assert torch.equal(model.conv(x), before)
    assert [a.shape for a in find_layers(model)] == [a.shape for a in find_layers(plain)]
    assert set(model.state_dict()) == set(plain.state_dict())
    assert list(leftovers(model, find_layers(model))) == ["conv.bias", "head.bias"]


def test_weight_norm_of_old_is_folded():
    torch.manual_seed(0)
    model = Holder(conv=nn.Conv1d(4, 6, 3))
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.conv)
    model.conv.weight_g.data *= 1.7
    x = torch.randn(2, 4, 9)
    before = model.conv(x)
    plain_weights(model)
    assert torch.equal(model.conv(x), before)
    assert set(model.state_dict()) == {"conv.weight", "conv.bias"}
    assert list(leftovers(model, find_layers(model))) == ["conv.bias"]


def test_plain_weights_leave_a_plain_model_alone():
    model = Talker()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain_weights(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_leftovers_hold_buffers_and_no_gradient():
    model = Holder(front=nn.Conv1d(2, 3, 1, bias=False), norm=nn.BatchNorm1d(3))
    rest = leftovers(model, find_layers(model))
    assert list(rest) == [
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]
    assert rest["norm.num_batches_tracked"].dtype == torch.int64
    assert not any(t.requires_grad for t in rest.values())
