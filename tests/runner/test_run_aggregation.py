"""Groups over a Grid: the mean is exact, no summary is ever seen, and members may drop out."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord
from group_toys import LARGE, PEOPLE, group_mean, run_groups, sensed, write_clips
from own_engine import LosingGrid, PassingGrid, answering, changed

from fedsim.engine.flower_internals import pack
from fedsim.privacy.secure_aggregation import wire
from fedsim.privacy.secure_aggregation.codes import STEPS, encode
from fedsim.privacy.secure_aggregation.groups import make_groups
from fedsim.protocol import messages as m
from fedsim.results.ledger import Ledger
from fedsim.study.privacy_statement import read_statement


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder):
    clips = write_clips(tmp_path_factory.mktemp("group") / "clips")

    def run_(release="cohort", home=None, engine="own"):
        home = home or tmp_path_factory.mktemp("run") / "out"
        return run_groups(model_folder("ctc-group"), clips, home, release, engine)

    return run_


@pytest.fixture(scope="module")
def values(run):
    """What each device senses, from a run that releases it."""
    return sensed(run("values", engine="inprocess"))


def test_groups_cover_everybody_once_and_are_large_enough():
    for n in range(3, 40):
        clients = [f"c{i}" for i in range(n)]
        groups = make_groups(clients, 5, 1)
        assert sorted(c for g in groups for c in g) == (sorted(clients) if n >= 5 else [])
        assert all(5 <= len(g) < 10 for g in groups)
        assert groups == make_groups(clients[::-1], 5, 1)
    assert make_groups([f"c{i}" for i in range(20)], 5, 1) != make_groups(
        [f"c{i}" for i in range(20)], 5, 2
    )


def test_members_share_the_mean_of_their_group(run, values):
    result = run(engine="inprocess")
    assert result.failures == []
    bounds = read_statement(result.folder.privacy).bounds
    means = sensed(result)
    groups = make_groups(PEOPLE, 3, 5)
    assert sorted(map(len, groups)) == [3, 4]
    for group in groups:
        wanted = group_mean(values, group, bounds)
        for client in group:
            # Codes have 2^20 steps between the bounds.
            assert means[client] == pytest.approx(wanted, rel=1e-4)
    with Ledger(result.folder.ledger) as ledger:
        bits = {p.client: p.bits for p in ledger.plans()}
        budgets = {r.client: r.budget_bytes for r in ledger.rows()}
        fields = {(r.stage, r.field) for r in ledger.all_releases() if r.direction == "up"}
        sizes = {r.bytes for r in ledger.all_releases() if r.field == "codes"}
    for group in groups:
        assert len({(budgets[c], bits[c]) for c in group}) == len({budgets[c] for c in group})
    assert {
        ("join", "mask"),
        ("share", "sealed"),
        ("mask", "codes"),
        ("unmask", "shares"),
    } <= fields
    assert sizes == {4 * len(bounds.low)}


class Recorder(PassingGrid):
    """Records the bytes of every reply before the server has it."""

    def __init__(self, grid, found):
        super().__init__(grid)
        self.found = found

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        self.found += [pack(reply) for reply in replies]
        return replies


def test_the_server_never_holds_a_summary(run, values, engine):
    """None of the bytes that it receives hold a member's codes or values."""
    replies = []
    engine.wrap = lambda grid: Recorder(grid, replies)
    run("values")
    assert all(np.float64(vector[0]).tobytes() in b"".join(replies) for vector in values.values())
    replies.clear()
    result = run()
    bounds = read_statement(result.folder.privacy).bounds
    received = b"".join(replies)
    assert received
    for vector in values.values():
        codes = encode(vector, bounds)
        for piece in (codes[:2], codes[-2:]):
            assert piece.astype("<u4").tobytes() not in received
        for value in vector:
            assert np.float64(value).tobytes() not in received
            assert np.float32(value).tobytes() not in received
    assert codes.max() <= STEPS


@pytest.mark.parametrize("stage", ["join", "share", "mask", "unmask"])
def test_a_group_survives_members_that_drop_out(run, values, engine, stage):
    gone = LARGE[1]
    engine.wrap = lambda grid: LosingGrid(grid, **{stage: [gone]})
    result = run()
    assert [(f.client, f.stage, f.outcome) for f in result.failures] == [(gone, stage, "dropped")]
    bounds = read_statement(result.folder.privacy).bounds
    means = sensed(result)
    # Who drops out last is in the sum all the same.
    group = LARGE if stage == "unmask" else [c for c in LARGE if c != gone]
    wanted = group_mean(values, group, bounds)
    for client in set(LARGE) - {gone}:
        assert means[client] == pytest.approx(wanted, rel=1e-4)


BROKEN = {
    m.JOIN: (wire.Keys, lambda keys: replace(keys, seal=bytes(32))),
    m.SHARE: (wire.Envelopes, lambda sent: replace(sent, sealed=sent.sealed[:-1])),
    m.MASK: (wire.Masked, lambda masked: replace(masked, codes=masked.codes[:-4])),
    m.UNMASK: (wire.Shares, lambda shares: replace(shares, shares=shares.shares[:-1])),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_member_whose_message_is_invalid_is_left_out(run, values, engine, kind):
    """It is quarantined by name, and the rest of its group goes on."""
    broken = LARGE[1]
    engine.mods = [answering(broken, kind, *BROKEN[kind])]
    result = run()
    ((client, stage, outcome),) = [(f.client, f.stage, f.outcome) for f in result.failures]
    assert (client, stage, outcome) == (broken, m.STAGES[kind], "quarantined")
    assert f"client {broken!r} sent " in result.failures[0].reason
    bounds = read_statement(result.folder.privacy).bounds
    group = LARGE if kind == m.UNMASK else [c for c in LARGE if c != broken]
    for client in set(LARGE) - {broken}:
        assert sensed(result)[client] == pytest.approx(group_mean(values, group, bounds), rel=1e-4)


class LoweringGrid(PassingGrid):
    """A server that lowers the threshold of every group to two."""

    def push(self, message):
        if message.metadata.message_type == m.SHARE:
            content = message.content.copy()
            content["message"] = ConfigRecord({**content["message"], "threshold": 2})
            message = changed(message, content)
        return super().push(message)


def test_a_device_refuses_a_smaller_group_than_its_scenario_requires(run, engine):
    engine.wrap = LoweringGrid
    result = run()
    assert {f.outcome for f in result.failures} == {"failed"}
    assert len(result.failures) == len(PEOPLE)
    assert "of which 2 must stay: its scenario requires 3" in result.failures[0].reason


def test_every_exchange_has_a_stage_of_its_own():
    assert len(set(m.STAGES.values())) == len(m.STAGES) == 7
