"""Groups over a Grid: the mean is exact, no summary is ever seen, and members may fall out."""

from dataclasses import replace

import numpy as np
import pytest
import toys
from fedsim_clients.device import Device
from fedsim_server.faulty import FaultyGrid

from fedsim.engine.inprocess import InProcessGrid
from fedsim.privacy.bounds import denormalize, normalize
from fedsim.privacy.secure_aggregation import device as member
from fedsim.privacy.secure_aggregation.codes import STEPS, encode
from fedsim.privacy.secure_aggregation.groups import make_groups
from fedsim.protocol import messages as m
from fedsim.results.ledger import Ledger
from fedsim.run.single import resume_run, run_scenario
from fedsim.scenario import Scenario
from fedsim.study.privacy_statement import read_statement

PEOPLE = [f"speaker{i}" for i in range(7)]
MYQASR = {"allocation": "myqasr", "calibration": ["minmax"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder):
    corpus = toys.write_corpus(tmp_path_factory.mktemp("group") / "clips", PEOPLE, each=3)

    def run_(release="cohort", home=None, **sections):
        scenario = Scenario.model_validate(
            {
                "name": "toy",
                "seed": 5,
                "model": {"id": str(model_folder("ctc-group")), "batch_size": 4},
                "corpus": {
                    "path": str(corpus),
                    "group_by": "speaker",
                    "tuning_clips": 2,
                    "test_clips": 1,
                },
                "clients": {"budget_mb": [0.032, 0.028], "bit_depths": [2, 4, 8]},
                "methods": [MYQASR],
                "engine": {"kind": "inprocess"},
                "privacy": {
                    "release": release,
                    "public_voices": 2,
                    "bounds": [0.0, 1.0],
                    "cohort": {"size": 3, "threshold": 3},
                },
                **sections,
            }
        )
        return run_scenario(scenario, home or tmp_path_factory.mktemp("run") / "out")

    return run_


@pytest.fixture(scope="module")
def values(run):
    """What each device senses, from a run that releases it."""
    return sensed(run("values"))


def sensed(result):
    with Ledger(result.folder.ledger) as ledger:
        return {s.client: np.array(s.sensitivity) for s in ledger.sensed()}


def group_mean(values, group, bounds):
    """The geometric mean of clipped values, by the definition."""
    return denormalize(np.mean([normalize(values[c], bounds) for c in group], axis=0), bounds)


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
    result = run()
    assert result.failures == []
    bounds = read_statement(result.folder.privacy).bounds
    told = sensed(result)
    groups = make_groups(PEOPLE, 3, 5)
    assert sorted(map(len, groups)) == [3, 4]
    for group in groups:
        wanted = group_mean(values, group, bounds)
        for client in group:
            # Codes have 2^20 steps between the bounds.
            assert told[client] == pytest.approx(wanted, rel=1e-4)
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


def test_the_server_never_holds_a_summary(run, values, monkeypatch):
    """Of all bytes that it receives before the sum, none tell a member's codes or values."""
    replies = []
    pull = InProcessGrid._finish

    def record(self, job, reply, state):
        replies.append(reply)
        pull(self, job, reply, state)

    monkeypatch.setattr(InProcessGrid, "_finish", record)
    run("values")
    assert all(np.float64(vector[0]).tobytes() in b"".join(replies) for vector in values.values())
    replies.clear()
    result = run()
    bounds = read_statement(result.folder.privacy).bounds
    received = b"".join(replies)
    for vector in values.values():
        codes = encode(vector, bounds)
        for piece in (codes[:2], codes[-2:]):
            assert piece.astype("<u4").tobytes() not in received
        for value in vector:
            assert np.float64(value).tobytes() not in received
            assert np.float32(value).tobytes() not in received
    assert codes.max() <= STEPS


def lost(monkeypatch, **missing):
    """Lose the answers of these clients at these stages."""

    def push(self, message):
        client, stage, _ = self._place(message)
        if client in missing.get(stage, ()):
            from fedsim.engine.flower_internals import NO_REPLY, error_reply, set_message_id

            set_message_id(message, f"lost-{client}-{stage}")
            self._lost[message.metadata.message_id] = error_reply(message, NO_REPLY, "it is gone")
            return message.metadata.message_id
        (message_id,) = self._grid.push_messages([message])
        return message_id

    monkeypatch.setattr(FaultyGrid, "_push", push)
    return {"faults": [{"kind": "crash", "share": 1e-9}]}


@pytest.mark.parametrize("stage", ["join", "share", "mask", "unmask"])
def test_a_group_survives_members_that_fall_out(run, values, monkeypatch, stage):
    (large,) = (g for g in make_groups(PEOPLE, 3, 5) if len(g) == 4)
    gone = large[1]
    result = run(**lost(monkeypatch, **{stage: [gone]}))
    assert [(f.client, f.stage, f.outcome) for f in result.failures] == [(gone, stage, "dropped")]
    bounds = read_statement(result.folder.privacy).bounds
    told = sensed(result)
    # Who falls out last is in the sum all the same.
    group = large if stage == "unmask" else [c for c in large if c != gone]
    wanted = group_mean(values, group, bounds)
    for client in set(large) - {gone}:
        assert told[client] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("stage", "step", "change"),
    [
        ("join", "join", lambda keys: replace(keys, seal=bytes(32))),
        ("share", "share", lambda sent: replace(sent, sealed=sent.sealed[:-1])),
        ("mask", "hide", lambda masked: replace(masked, codes=masked.codes[:-4])),
        ("unmask", "unmask", lambda shares: replace(shares, shares=shares.shares[:-1])),
    ],
)
def test_a_member_whose_message_is_odd_is_left_out(run, values, monkeypatch, stage, step, change):
    """It is quarantined by name, and the rest of its group goes on."""
    (large,) = (g for g in make_groups(PEOPLE, 3, 5) if len(g) == 4)
    odd, do = large[1], getattr(member, step)
    asked, read = [], Device.read

    def note(self, kind, message):
        asked.append(self.data.key)
        return read(self, kind, message)

    def broken(*args):
        state, answer = do(*args)
        return state, change(answer) if asked[-1] == odd else answer

    monkeypatch.setattr(Device, "read", note)
    monkeypatch.setattr(member, step, broken)
    result = run()
    assert [(f.client, f.stage, f.outcome) for f in result.failures] == [
        (odd, stage, "quarantined")
    ]
    assert f"client {odd!r} sent " in result.failures[0].reason
    bounds = read_statement(result.folder.privacy).bounds
    group = large if stage == "unmask" else [c for c in large if c != odd]
    for client in set(large) - {odd}:
        assert sensed(result)[client] == pytest.approx(group_mean(values, group, bounds), rel=1e-4)


def test_a_group_that_too_many_leave_has_failed_and_tells_nothing(run, monkeypatch):
    small, large = sorted(make_groups(PEOPLE, 3, 5), key=len)
    result = run(**lost(monkeypatch, mask=[small[0]]))
    outcomes = {f.client: f.outcome for f in result.failures}
    assert outcomes == {small[0]: "dropped", small[1]: "failed", small[2]: "failed"}
    reason = next(f.reason for f in result.failures if f.client == small[1])
    assert f"client {small[1]!r}: 2 members of a group sent their codes" in reason
    assert set(sensed(result)) == set(large)
    monkeypatch.undo()
    again = resume_run(result.folder.path)  # these three are a group again, the others are done
    assert again.failures == []
    assert set(sensed(again)) == set(PEOPLE)


def test_a_group_is_not_asked_twice(run, monkeypatch):
    """Two sums that differ in one member would tell that one's values."""
    (large,) = (g for g in make_groups(PEOPLE, 3, 5) if len(g) == 4)
    result = run(**lost(monkeypatch, personalize=[large[0]], mask=[large[1]]))
    assert {f.client: f.outcome for f in result.failures} == {
        large[0]: "dropped",
        large[1]: "dropped",
    }
    monkeypatch.undo()
    before = sensed(result)
    again = resume_run(result.folder.path)
    assert [(f.client, f.stage) for f in again.failures] == [(large[1], "aggregate")]
    assert "1 clients are left, too few for a group of 3" in again.failures[0].reason
    told = sensed(again)
    assert told[large[0]].tolist() == before[large[2]].tolist()  # of its first group


class Cut(BaseException):
    """The server process ends here."""


def cut_off(monkeypatch, tmp_path, run, writes):
    """Run until the ledger has been written so often of groups; return the run folder."""
    keep, made = Ledger.keep_together, []
    home = tmp_path / "cut"

    def once(self, stage, replies, logs=()):
        if stage == "cohort":
            if len(made) == writes:
                raise Cut
            made.append(list(replies))
        keep(self, stage, replies, logs)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "keep_together", once)
        with pytest.raises(Cut):
            run(home=home)
    return home, made


@pytest.mark.parametrize("sums", [0, 1])
def test_nobody_is_asked_twice_after_an_interruption(run, monkeypatch, tmp_path, sums):
    """Who was about to be uncovered keeps the mean that came, or has failed: never regrouped."""
    home, made = cut_off(monkeypatch, tmp_path, run, 1 + sums)
    assert sorted(made[0]) == PEOPLE
    invited, push = [], InProcessGrid.push_messages

    def note(self, messages):
        messages = list(messages)
        invited.extend(x for x in messages if x.metadata.message_type == m.JOIN)
        return push(self, messages)

    monkeypatch.setattr(InProcessGrid, "push_messages", note)
    again = resume_run(home)
    assert invited == []
    group = made[1] if sums else []
    told = sensed(again)
    assert sorted(told) == sorted(group)
    assert len({tuple(v) for v in told.values()}) == sums
    assert {f.client for f in again.failures} == set(PEOPLE) - set(group)
    assert {(f.stage, f.outcome) for f in again.failures} == {("aggregate", "failed")}
    assert "was asked for its sum before, and none came of it" in again.failures[0].reason
    assert {f.client for f in resume_run(home).failures} == set(PEOPLE) - set(group)
    assert invited == []


def test_before_a_sum_is_uncovered_groups_are_drawn_anew(run, monkeypatch, tmp_path):
    home, made = cut_off(monkeypatch, tmp_path, run, 0)
    assert made == []
    assert resume_run(home).failures == []


def test_a_group_that_failed_at_the_end_is_not_asked_again(run, monkeypatch):
    small, large = sorted(make_groups(PEOPLE, 3, 5), key=len)
    result = run(**lost(monkeypatch, unmask=[small[0]]))
    assert {f.client for f in result.failures} == set(small)
    monkeypatch.undo()
    again = resume_run(result.folder.path)
    assert {f.client: f.outcome for f in again.failures} == dict.fromkeys(small, "failed")
    assert set(sensed(again)) == set(large)


def test_a_device_refuses_a_smaller_group_than_its_scenario_promises(run, monkeypatch):
    """A server that lowers the threshold is told so by every device, which has its own scenario."""
    from fedsim_server import cohort

    roster = cohort.protocol.roster
    monkeypatch.setattr(cohort.protocol, "roster", lambda keys, least: roster(keys, 2))
    result = run()
    assert {f.outcome for f in result.failures} == {"failed"}
    assert len(result.failures) == len(PEOPLE)
    assert "refuses a group of which 2 must stay, for its scenario promises 3" in str(
        result.failures[0].reason
    )


def test_every_exchange_has_a_stage_of_its_own():
    assert len(set(m.STAGES.values())) == len(m.STAGES) == 7
