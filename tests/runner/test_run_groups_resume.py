"""Groups that fail and runs that are cut off: no two sums reveal the values of one member."""

import pytest
from group_toys import LARGE, PEOPLE, SMALL, run_groups, sensed, write_clips
from own_engine import LosingGrid, PassingGrid

from fedsim.protocol import messages as m
from fedsim.runner.single import resume_run


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder):
    clips = write_clips(tmp_path_factory.mktemp("group") / "clips")

    def run_(release="cohort", home=None, engine="own"):
        home = home or tmp_path_factory.mktemp("run") / "out"
        return run_groups(model_folder("ctc-group"), clips, home, release, engine)

    return run_


@pytest.fixture
def lose(engine):
    """f(stage=clients): lose the answers of these clients at these stages, from now on."""

    def lose_(**clients):
        engine.wrap = lambda grid: LosingGrid(grid, **clients)

    return lose_


def test_a_group_that_too_many_leave_has_failed_and_reveals_nothing(run, lose):
    lose(mask=[SMALL[0]])
    result = run()
    outcomes = {f.client: f.outcome for f in result.failures}
    assert outcomes == {SMALL[0]: "dropped", SMALL[1]: "failed", SMALL[2]: "failed"}
    reason = next(f.reason for f in result.failures if f.client == SMALL[1])
    assert f"client {SMALL[1]!r}: 2 members of a group sent their codes" in reason
    assert set(sensed(result)) == set(LARGE)
    lose()
    again = resume_run(result.folder.path)  # these three are a group again, the others are done
    assert again.failures == []
    assert set(sensed(again)) == set(PEOPLE)


def test_a_group_is_not_asked_twice(run, lose):
    """Two sums that differ in one member would reveal that one's values."""
    lose(personalize=[LARGE[0]], mask=[LARGE[1]])
    result = run()
    outcomes = {f.client: f.outcome for f in result.failures}
    assert outcomes == {LARGE[0]: "dropped", LARGE[1]: "dropped"}
    lose()
    before = sensed(result)
    again = resume_run(result.folder.path)
    assert [(f.client, f.stage) for f in again.failures] == [(LARGE[1], "aggregate")]
    assert "1 clients are left, fewer than a group of 3" in again.failures[0].reason
    assert sensed(again)[LARGE[0]].tolist() == before[LARGE[2]].tolist()  # of its first group


class CutError(BaseException):
    """The server process ends here."""


class CutGrid(PassingGrid):
    """Cuts the run off at a message: the first of a type, or the first after some of a type."""

    def __init__(self, grid, kind, after=0):
        super().__init__(grid)
        self.kind, self.left = kind, after

    def push(self, message):
        if message.metadata.message_type == self.kind:
            if not self.left:
                raise CutError
            self.left -= 1
        return super().push(message)


class InvitationsGrid(PassingGrid):
    """Notes who is invited to a group."""

    def __init__(self, grid, invited):
        super().__init__(grid)
        self.invited = invited

    def push(self, message):
        if message.metadata.message_type == m.JOIN:
            self.invited.append(self.names[message.metadata.dst_node_id])
        return super().push(message)


def cut_off(run, engine, home, kind):
    """Run until the first message of this type; then note in the list who is invited."""
    engine.wrap = lambda grid: CutGrid(grid, kind)
    with pytest.raises(CutError):
        run(home=home)
    invited = []
    engine.wrap = lambda grid: InvitationsGrid(grid, invited)
    return invited


@pytest.mark.parametrize("means", [False, True])
def test_nobody_is_asked_twice_after_an_interruption(run, engine, tmp_path, means):
    """Who was about to be unmasked keeps the mean that came, or has failed: never regrouped.

    The first request for a share of a mask comes when all are noted as asked, and the first
    delivery when all means have come.
    """
    home = tmp_path / "cut"
    invited = cut_off(run, engine, home, m.PERSONALIZE if means else m.UNMASK)
    again = resume_run(home)
    assert invited == []
    found = sensed(again)
    assert sorted(found) == (PEOPLE if means else [])
    assert len({tuple(v) for v in found.values()}) == 2 * means
    if not means:
        assert {f.client for f in again.failures} == set(PEOPLE)
        assert {(f.stage, f.outcome) for f in again.failures} == {("aggregate", "failed")}
        assert "start a run in another folder" in again.failures[0].reason
        assert {f.client for f in resume_run(home).failures} == set(PEOPLE)
        assert invited == []


def test_one_group_that_was_unmasked_keeps_its_mean(run, engine, tmp_path):
    """The answers of the other group were lost: its members have failed, and are not regrouped."""
    engine.wrap = lambda grid: LosingGrid(grid, unmask=SMALL)
    result = run(home=tmp_path / "run")
    invited = []
    engine.wrap = lambda grid: InvitationsGrid(grid, invited)
    again = resume_run(result.folder.path)
    assert invited == []
    assert set(sensed(again)) == set(LARGE)
    assert len({tuple(v) for v in sensed(again).values()}) == 1
    assert {f.client for f in again.failures} == set(SMALL)


def test_before_a_sum_is_unmasked_groups_are_drawn_anew(run, engine, tmp_path):
    invited = cut_off(run, engine, tmp_path / "cut", m.MASK)
    assert resume_run(tmp_path / "cut").failures == []
    assert sorted(invited) == PEOPLE


def test_a_group_that_failed_at_the_end_is_not_asked_again(run, lose):
    lose(unmask=[SMALL[0]])
    result = run()
    assert {f.client for f in result.failures} == set(SMALL)
    lose()
    again = resume_run(result.folder.path)
    assert {f.client: f.outcome for f in again.failures} == dict.fromkeys(SMALL, "failed")
    assert set(sensed(again)) == set(LARGE)
