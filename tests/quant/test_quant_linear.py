"""Linear layers by oneDNN against products in double precision."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from fedsim.quant.linear import FEW, OneDnnLinear, mkl_is_slow, use_onednn

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch was built without oneDNN"
)


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def layer(request) -> nn.Linear:
    torch.manual_seed(1)
    return OneDnnLinear(96, 160, bias=request.param).requires_grad_(False)


@pytest.fixture
def processor(monkeypatch):
    """f(vendor, capability): have this machine look like one with such a processor."""

    def look(vendor: str, capability: str) -> None:
        monkeypatch.setattr(Path, "read_text", lambda path: f"vendor_id\t: {vendor}\n")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        mkl_is_slow.cache_clear()

    yield look
    mkl_is_slow.cache_clear()


def exact(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    out = x.double() @ layer.weight.double().T
    return out if layer.bias is None else out + layer.bias.double()


def calls(run) -> set[str]:
    """Return the names of what torch computed."""
    with torch.profiler.profile() as found, torch.inference_mode():
        run()
    return {event.key for event in found.key_averages()}


FEW_ROWS = FEW // (96 * 160)


@pytest.mark.parametrize("rows", [(0,), (1,), (FEW_ROWS,), (FEW_ROWS + 1,), (3, 211), (2, 5, 50)])
def test_products_are_exact_to_rounding(layer, rows):
    x = torch.randn(*rows, 96)
    with torch.inference_mode():
        out = layer(x)
    assert out.shape == (*rows, 160)
    torch.testing.assert_close(out.double(), exact(layer, x), rtol=0, atol=1e-5)


def test_transposed_and_sliced_inputs_and_weights(layer):
    layer.weight.data = torch.randn(96, 320).T[::2]
    x = torch.randn(700, 2, 96).transpose(0, 1)[:, ::2]
    with torch.inference_mode():
        torch.testing.assert_close(layer(x).double(), exact(layer, x), rtol=0, atol=1e-4)


def test_large_products_are_onednns_and_small_ones_are_not(layer):
    x = torch.randn(FEW_ROWS + 1, 96)
    assert "mkldnn::_linear_pointwise" in calls(lambda: layer(x))
    assert "mkldnn::_linear_pointwise" not in calls(lambda: layer(x[:-1]))


def test_an_exporter_sees_the_public_operator(layer):
    """At any number of rows: no other tool knows the private one."""
    x, rows = torch.randn(FEW_ROWS + 1, 96), torch.export.Dim("rows", min=2)
    with torch.no_grad():
        program = torch.export.export(layer, (x,), dynamic_shapes={"input": {0: rows}})
    computed = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert computed == {"aten.linear.default"}


def test_a_clip_is_answered_alike_alone_and_in_a_batch(layer):
    x = torch.randn(4, 300, 96)
    with torch.inference_mode():
        alone = [layer(clip[None])[0] for clip in x]
        assert torch.equal(layer(x), torch.stack(alone))


def test_gradients_are_those_of_torch(layer):
    plain = nn.Linear(96, 160, bias=layer.bias is not None)
    plain.load_state_dict(layer.state_dict())
    x, same = (torch.randn(600, 96, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    layer.requires_grad_(True)
    layer(x.requires_grad_()).square().sum().backward()
    plain(same.requires_grad_()).square().sum().backward()
    torch.testing.assert_close(x.grad, same.grad)
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


def test_other_types_of_numbers(layer):
    layer.double()
    x = torch.randn(600, 96).double()
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), exact(layer, x))


def test_a_copy_computes_with_its_own_weights(layer):
    twin = copy.deepcopy(layer)
    twin.weight.data = torch.zeros_like(twin.weight)
    x = torch.randn(600, 96)
    with torch.inference_mode():
        assert (twin(x) == (0.0 if twin.bias is None else twin.bias)).all()
        torch.testing.assert_close(layer(x).double(), exact(layer, x), rtol=0, atol=1e-5)


class Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch was built without MKL")
def test_where_mkl_is_slow_plain_linear_layers_are_onednns(processor):
    processor("AuthenticAMD", "AVX512")
    model = nn.Sequential(nn.Linear(2, 2), Doubled(2, 2), nn.Conv1d(2, 2, 1))
    before = list(model)
    assert use_onednn(model) is model
    assert list(map(id, model)) == list(map(id, before))
    assert list(map(type, model)) == [OneDnnLinear, Doubled, nn.Conv1d]


@pytest.mark.parametrize(
    ("vendor", "known"), [("GenuineIntel", "AVX512"), ("AuthenticAMD", "AVX2")]
)
def test_elsewhere_they_are_left_to_torch(processor, vendor, known):
    processor(vendor, known)
    assert type(use_onednn(nn.Sequential(nn.Linear(2, 2)))[0]) is nn.Linear
