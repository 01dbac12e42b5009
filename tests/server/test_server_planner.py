"""Plans: which models a client is sent and tests, whose clips they come from, their names."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from fedsim_server.planner import Planner, Returned
from plan_toys import DEPTHS, label, myqasr, no_public, scenario

from fedsim.base.seeds import client_rng
from fedsim.errors import BudgetError, FedsimError
from fedsim.protocol import messages as m
from fedsim.quant.allocation import Sizes, allocate
from fedsim.quant.bank import BlobStore, LayerBank
from fedsim.quant.granularities import PER_TENSOR
from fedsim.quant.layers import Layer
from fedsim.quant.packing import packed_bytes
from fedsim.quant.profile import profile_of

LAYERS = tuple(Layer(f"layer{i}", "linear", (8, 10 + i)) for i in range(6))
MEDIANS = {
    "ann": (3.0, 1.0, 2.0, 6.0, 5.0, 4.0),
    "bob": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
    "cyd": (6.0, 5.0, 4.0, 3.0, 2.0, 1.0),
}
KEYS = sorted(MEDIANS)


@pytest.fixture
def planner(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {layer.name: torch.randn(layer.shape, generator=generator) for layer in LAYERS}
    table = np.array([[packed_bytes(layer.n_weights, d) for d in DEPTHS] for layer in LAYERS])
    sizes = Sizes(DEPTHS, table, 100)

    def make(*methods, **options):
        bank = LayerBank(weights, LAYERS, PER_TENSOR, BlobStore(tmp_path / "bank"))
        return Planner(scenario(*methods, **options), sizes, bank, no_public(LAYERS), 100)

    return make


def summary(client, budget=450) -> m.Summary:
    return m.Summary(client, budget, DEPTHS, 3, MEDIANS[client])


def profile(client):
    return profile_of(MEDIANS[client], "median")


SUMMARIES = {key: summary(key) for key in KEYS}


def test_a_candidate(planner):
    plan = planner(myqasr())
    cell = label("myqasr", "minmax")
    found = plan.candidate(cell, SUMMARIES["ann"], SUMMARIES["ann"])
    assert found.bits == allocate("myqasr", profile("ann"), plan.sizes, 450)
    assert plan.sizes.total(found.bits) <= 450
    assert (found.name, found.calibration, found.tuned_on) == ("myqasr/minmax", "minmax", "ann")
    assert found.ranges == ()
    assert len(found.blobs) == 32 * len(LAYERS)
    names = [found.blobs[32 * i : 32 * (i + 1)].hex() for i in range(len(LAYERS))]
    for name, layer, bits in zip(names, LAYERS, found.bits, strict=True):
        data = plan.bank.store.get(name)
        assert hashlib.sha256(data).hexdigest() == name
        assert len(data) == 2 + packed_bytes(layer.n_weights, bits)  # one scale in half precision


def test_a_candidate_takes_the_order_of_its_source_and_the_budget_of_its_client(planner):
    plan = planner(myqasr())
    small, large = summary("ann", 300), summary("bob", 500)
    found = plan.candidate(label("myqasr", "minmax"), small, large)
    assert found.tuned_on == "bob"
    assert found.bits == allocate("myqasr", profile("bob"), plan.sizes, 300)
    assert found.bits != allocate("myqasr", profile("ann"), plan.sizes, 300)


TUNED_ON = {
    ("uniform", "none"): "",
    ("shuffled", "none"): "",
    ("uniform", "minmax"): "ann",  # the ranges are hers
    ("shuffled", "cosine"): "ann",
    ("myqasr", "none"): "ann",  # the plan is hers
    ("linear", "none"): "ann",
    ("reversed", "none"): "ann",
}


def test_a_model_that_reads_no_clip_is_tuned_on_nobody(planner):
    plan = planner("uniform")
    for (allocation, calibration), tuned_on in TUNED_ON.items():
        cell = label(allocation, calibration)
        assert plan.candidate(cell, SUMMARIES["ann"], SUMMARIES["ann"]).tuned_on == tuned_on


def test_shuffles_depend_on_seed_client_and_draw(planner):
    def bits(seed, client, draw):
        cell = label("shuffled", "minmax", draw=draw)
        one = summary(client, 470)
        return planner("shuffled", seed=seed).candidate(cell, one, one).bits

    sizes = planner("shuffled").sizes
    rng = client_rng(5, "ann", "shuffled-0")
    assert bits(5, "ann", 0) == allocate("shuffled", profile("ann"), sizes, 470, rng=rng)
    found = [bits(s, c, d) for s in (5, 6) for c in KEYS for d in (0, 1)]
    assert len(set(found)) > 5
    assert found == [bits(s, c, d) for s in (5, 6) for c in KEYS for d in (0, 1)]


def test_no_sensitivity_is_needed_where_none_is_used(planner):
    bare = m.Summary("ann", 450, DEPTHS, 3, ())
    plan = planner("uniform")
    assert len(set(plan.candidate(label("uniform", "none"), bare, bare).bits)) == 1


def test_mistakes_name_the_client(planner):
    plan = planner(myqasr())
    cell = label("myqasr", "minmax")
    with pytest.raises(BudgetError, match=r"^client 'ann': a budget of 10 bytes"):
        plan.candidate(cell, summary("ann", 10), SUMMARIES["bob"])
    short = m.Summary("bob", 450, DEPTHS, 3, (1.0, 2.0))
    with pytest.raises(FedsimError, match=r"^client 'bob': .* 2 layers .* 6"):
        plan.candidate(cell, SUMMARIES["ann"], short)
    broken = m.Summary("bob", 450, DEPTHS, 3, (1.0, float("nan"), 1.0, 1.0, 1.0, 1.0))
    with pytest.raises(FedsimError, match=r"^client 'bob': .* layer 1 is nan"):
        plan.candidate(cell, SUMMARIES["ann"], broken)


METHODS = (
    "fp32",
    {"allocation": "uniform", "calibration": ["none", "minmax"]},
    myqasr("own", "other"),
    {"allocation": "shuffled", "calibration": ["none"], "tuned_on": ["own", "other"]},
)
RETURNED = {
    key: {
        label: Returned(tuple(float(i) for i in range(12)))
        for label in ("uniform/none", "uniform/minmax", "myqasr/minmax", "shuffled/none")
    }
    for key in KEYS
}


def test_own_models(planner):
    found = planner(*METHODS).own(SUMMARIES["bob"])
    assert [(c.name, c.tuned_on) for c in found] == [
        ("uniform/none", ""),
        ("uniform/minmax", "bob"),
        ("myqasr/minmax", "bob"),
        ("shuffled/none", ""),
    ]
    assert all(c.ranges == () for c in found)


def test_tested_models(planner):
    plan = planner(*METHODS)
    found, lost = plan.tested(SUMMARIES["cyd"], SUMMARIES, RETURNED, KEYS)
    assert lost == ""
    assert [(c.name, c.tuned_on) for c in found] == [
        ("uniform/none", ""),
        ("uniform/minmax", "cyd"),
        ("myqasr/minmax", "cyd"),
        ("myqasr/minmax", "ann"),
        ("shuffled/none", ""),  # once: it is tuned on nobody, so there is no other's
    ]
    assert [bool(c.ranges) for c in found] == [False, False, False, True, False]
    assert found[3].ranges == RETURNED["ann"]["myqasr/minmax"].ranges
    own = plan.own(SUMMARIES["cyd"])
    assert found[:3] + found[4:] == own  # to the letter: what was delivered is what is tested


def test_models_of_clients_that_failed(planner):
    plan = planner(*METHODS)
    ranges = {key: RETURNED[key] for key in ("ann", "cyd")}
    found, lost = plan.tested(SUMMARIES["ann"], SUMMARIES, ranges, KEYS)
    assert lost == "client 'ann': no model tuned on 'bob', because 'bob' failed"
    assert ("myqasr/minmax", "bob") not in [(c.name, c.tuned_on) for c in found]
    gone = {key: value for key, value in SUMMARIES.items() if key != "bob"}
    assert plan.tested(SUMMARIES["ann"], gone, ranges, KEYS) == (found, lost)
    each = planner(myqasr("each"))
    found, lost = each.tested(SUMMARIES["ann"], {"ann": SUMMARIES["ann"]}, {}, KEYS)
    assert found == ()
    assert "no model tuned on 'bob', 'cyd', because 'bob', 'cyd' failed" in lost
