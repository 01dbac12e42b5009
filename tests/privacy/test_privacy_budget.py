"""The privacy budget: exact sums, several processes, kills, and files that are none."""

import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from fedsim.errors import FedsimError
from fedsim.privacy import budget
from fedsim.privacy.budget import UNLIMITED, Limit, answer_once, is_answered, spent
from fedsim.privacy.budget_file import mark_of

ONE = Limit(1.0, 1e-5)
_numbers = itertools.count()


def spend(path, client, epsilon, delta, limit, **options):
    """Spend for a request that nobody has made before."""
    request = f"request {next(_numbers)}"
    return budget.spend(path, client, request, epsilon, delta, limit, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "budget.sqlite"


def test_what_is_spent_is_added_up_for_each_client(path):
    assert spent(path, "en") == (0.0, 0.0)
    assert spend(path, "en", 0.5, 1e-6, ONE)
    assert spend(path, "en", 0.25, 2e-6, ONE)
    assert spend(path, "de", 1.0, 0.0, ONE)
    assert spent(path, "en") == (0.75, 3e-6)
    assert spent(path, "de") == (1.0, 0.0)
    assert spent(path, "fr") == (0.0, 0.0)


def test_what_exceeds_the_limit_is_refused_and_not_counted(path):
    assert not spend(path, "en", 1.1, 0.0, ONE)
    assert not spend(path, "en", 0.1, 2e-5, ONE)  # epsilon would do, delta does not
    assert spend(path, "en", 0.9, 9e-6, ONE)
    assert not spend(path, "en", 0.2, 0.0, ONE)
    assert not spend(path, "en", 0.0, 2e-6, ONE)
    assert spend(path, "en", 0.1, 1e-6, ONE)  # to the last bit of both
    assert spent(path, "en") == (1.0, 1e-5)
    assert not spend(path, "en", 1e-9, 0.0, ONE)
    assert spend(path, "en", 0.0, 0.0, ONE)  # nothing costs nothing
    assert spend(path, "en", 1.0, 0.0, Limit(2.0, 1e-5))  # the limit is the caller's


@pytest.mark.parametrize(("part", "times"), [(0.1, 10), (0.7, 3), (1 / 3, 3), (0.01, 29)])
def test_sums_are_exact(path, part, times):
    # Floating point says that 0.1 + 0.1 + 0.1 is more than 0.3, and 0.1 ten times less than 1.
    limit = Limit(float(f"{part * times:.12g}"), 0.0)
    counted = sum(spend(path, "en", part, 0.0, limit) for _ in range(times + 2))
    # A third is rounded up, in the ninth digit, so three of them are more than one.
    assert counted == (times if part != 1 / 3 else times - 1)


def test_a_cost_below_the_unit_is_never_free(path):
    assert spend(path, "en", 1e-300, 1e-300, ONE)
    assert min(spent(path, "en")) > 0


_SPEND = """
import os, sys
from fedsim.privacy.budget import Limit, spend
for i in range(int(sys.argv[2])):
    request = f"{os.getpid()} {i}"
    done = spend(sys.argv[1], f"c{i % 2}", request, 0.1, 0.0, Limit(1.0, 0.0))
    print(int(done), flush=True)
"""


def _spender(path, times):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", _SPEND, str(path), str(times)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_processes_never_spend_more_than_there_is(path):
    children = [_spender(path, 16) for _ in range(4)]
    granted = [child.communicate()[0].split() for child in children]
    # 64 requests for a tenth of one of two budgets of 1.
    assert [len(lines) for lines in granted] == [16] * 4
    assert sum(line == "1" for lines in granted for line in lines) == 20
    assert [spent(path, client) for client in ("c0", "c1")] == [(1.0, 0.0)] * 2


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_forgets_nothing_that_was_granted(path, seed):
    child = _spender(path, 100_000)
    granted = [child.stdout.readline() for _ in range(5)]
    threading.Event().wait(random.Random(seed).random() * 0.02)  # somewhere in a transaction
    child.send_signal(signal.SIGKILL)
    granted += child.stdout.read().split("\n")[:-1]
    child.wait()
    yes = sum(line.strip() == "1" for line in granted)
    total = sum(spent(path, client)[0] for client in ("c0", "c1"))
    assert round(10 * total) in (yes, yes + 1)  # at most one was counted and not yet answered
    assert spend(path, "new", 1.0, 0.0, ONE)


def test_a_spending_that_did_not_commit_is_not_seen(path):
    assert spend(path, "en", 0.5, 0.0, ONE)
    half = sqlite3.connect(path, isolation_level=None)
    half.execute("BEGIN IMMEDIATE")
    half.execute("UPDATE spent SET epsilon = 0")
    half.close()
    assert spent(path, "en") == (0.5, 0.0)


def test_a_locked_budget_grants_nothing(path):
    assert spend(path, "en", 0.5, 0.0, ONE)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(FedsimError, match=r"budget.sqlite: .* locked.*, so nothing is released"):
        spend(path, "en", 0.1, 0.0, ONE, lock_timeout_s=0.05)
    holder.close()
    assert spent(path, "en") == (0.5, 0.0)


def test_files_that_are_no_budget(tmp_path):
    text, other = tmp_path / "text", tmp_path / "other.sqlite"
    text.write_text("hello " * 100)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE results (client TEXT)")
    for path, why in (
        (text, "not a database"),
        (other, "name the right file"),
        (tmp_path / "no folder" / "b.sqlite", "unable to open"),
    ):
        with pytest.raises(FedsimError, match=why):
            spend(path, "en", 0.1, 0.0, ONE)
    with sqlite3.connect(other) as db:  # left as it was
        assert [name for (name,) in db.execute("SELECT name FROM sqlite_master")] == ["results"]


def test_numbers_that_are_no_costs(path):
    for epsilon, delta, limit, text in (
        (-0.1, 0.0, ONE, "epsilon of its privacy budget is -0.1"),
        (float("nan"), 0.0, ONE, "epsilon of its privacy budget is nan"),
        (float("inf"), 0.0, ONE, "epsilon of its privacy budget is inf"),
        (0.1, -1e-9, ONE, "delta of its privacy budget is -1e-09"),
        (0.1, 0.0, Limit(-1, 0), "limit on epsilon of its privacy budget is -1"),
        (0.1, 0.0, Limit(1, float("nan")), "limit on delta of its privacy budget is nan"),
    ):
        with pytest.raises(FedsimError, match=f"client 'en': the {text}"):
            spend(path, "en", epsilon, delta, limit)
        assert not path.exists()


def test_a_request_that_comes_again_costs_nothing_more(path):
    assert budget.spend(path, "en", "round 1", 0.75, 0.0, ONE)
    assert budget.spend(path, "en", "round 1", 0.75, 0.0, ONE)  # a retry
    assert budget.spend(path, "de", "round 1", 0.75, 0.0, ONE)  # another's
    assert not budget.spend(path, "en", "round 2", 0.75, 0.0, ONE)
    assert not budget.spend(path, "en", "round 2", 0.75, 0.0, ONE)  # a refusal is not remembered
    assert (spent(path, "en"), spent(path, "de")) == ((0.75, 0.0), (0.75, 0.0))


def test_the_first_answer_is_the_only_one(path):
    budget.spend(path, "en", "round 1", 0.5, 0.0, UNLIMITED)
    assert not is_answered(path, "en", "round 1")
    drawn = iter([b"first", b"second"])
    assert answer_once(path, "en", "round 1", lambda: next(drawn)) == b"first"
    assert is_answered(path, "en", "round 1")
    assert answer_once(path, "en", "round 1", lambda: next(drawn)) == b"first"
    assert next(drawn) == b"second"  # nobody had asked for it


def test_an_answer_that_failed_may_be_given_later_at_no_further_cost(path):
    budget.spend(path, "en", "round 1", 0.5, 0.0, UNLIMITED)
    with pytest.raises(ZeroDivisionError):
        answer_once(path, "en", "round 1", lambda: bytes(1 // 0))
    assert not is_answered(path, "en", "round 1")
    assert answer_once(path, "en", "round 1", lambda: b"answer") == b"answer"
    assert spent(path, "en") == (0.5, 0.0)


def test_there_is_no_answer_without_a_spending(path):
    with pytest.raises(FedsimError, match=r"client 'en': .* 'round 1'; call spend first"):
        answer_once(path, "en", "round 1", lambda: b"answer")


# ---- what is emptied, gone or damaged


@pytest.fixture
def used(path):
    """A budget of which `en` has spent 0.75 in two requests, and `de` 0.5 in one."""
    budget.spend(path, "en", "round 1", 0.5, 1e-6, ONE)
    answer_once(path, "en", "round 1", lambda: b"answer")
    budget.spend(path, "en", "round 2", 0.25, 1e-6, ONE)
    budget.spend(path, "de", "round 1", 0.5, 0.0, ONE)
    return path


def changed(statement, *values):
    def change(path):
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("PRAGMA ignore_check_constraints = 1")
            db.execute(statement, values)

    return change


def older(path):
    """Put back a copy that was made before the last spending."""
    copy = path.read_bytes()
    budget.spend(path, "en", "round 3", 0.125, 0.0, ONE)
    path.write_bytes(copy)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda path: path.write_bytes(b""), "it is empty, and the marker beside it tells"),
        (lambda path: path.unlink(), "the file is gone, and the marker beside it tells"),
        (lambda path: mark_of(path).unlink(), r"\.mark beside it, which holds its key, is gone"),
        (lambda path: mark_of(path).write_text("[]"), r"\.mark beside it is not what was written"),
        (lambda path: mark_of(path).write_bytes(b"\xff{"), "is not what was written"),
        (older, "it counts 3 spendings, and the marker beside it 4: an older copy"),
        (changed("UPDATE spent SET epsilon = -1"), "does not fit its checksum"),
        (changed("UPDATE spent SET epsilon = epsilon + 1"), "does not fit its checksum"),
        (changed("UPDATE spent SET epsilon = 'much'"), "does not fit its checksum"),
        (changed("UPDATE spent SET answer = x'00' WHERE answer NOT NULL"), "its checksum"),
        (changed("UPDATE spent SET client = 'fr' WHERE client = 'en'"), "do not add up"),
        (changed("DELETE FROM spent"), "client 'en' do not add up to its total"),
        (changed("DELETE FROM spent WHERE request = 'round 2'"), "do not add up to its total"),
        (changed("DELETE FROM totals"), "do not add up to its total"),
        (changed("UPDATE totals SET epsilon = 0"), "does not fit its checksum"),
        (changed("DELETE FROM counter"), "it counts 0 spendings, and the marker beside it 3"),
        (changed("UPDATE counter SET spendings = 9"), "does not fit its checksum"),
    ],
)
def test_a_damaged_budget_grants_nothing(used, damage, what):
    damage(used)
    for ask in (
        lambda: spend(used, "en", 0.1, 0.0, ONE),
        lambda: spent(used, "en"),
        lambda: is_answered(used, "en", "round 1"),
        lambda: answer_once(used, "en", "round 1", bytes),
    ):
        with pytest.raises(FedsimError, match=f"budget is damaged .*{what}.* nothing is released"):
            ask()


def test_the_key_is_for_its_owner_only(used):
    assert mark_of(used).stat().st_mode & 0o777 == 0o600


def test_the_rows_of_another_budget_do_not_fit(used, tmp_path):
    """Each file has a key of its own."""
    other = tmp_path / "other.sqlite"
    spend(other, "en", 0.0, 0.0, ONE)
    other.write_bytes(used.read_bytes())
    with pytest.raises(FedsimError, match="does not fit its checksum"):
        spent(other, "en")


def test_a_kill_before_the_first_spending_leaves_a_budget_that_can_be_used(path):
    """The key is there then, and the file is empty or gone."""
    assert spent(path, "en") == (0.0, 0.0)
    path.write_bytes(b"")
    assert spend(path, "en", 0.5, 0.0, ONE)


def test_a_marker_that_lags_behind_is_brought_up_to_date(used):
    """A process was killed between its commit and the marker."""
    mark = mark_of(used).read_bytes()
    spend(used, "en", 0.125, 0.0, ONE)
    mark_of(used).write_bytes(mark)
    copy = used.read_bytes()
    assert spent(used, "en") == (0.875, 2e-6)
    assert mark_of(used).read_bytes() != mark
    assert used.read_bytes() == copy


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_never_grants_more(used, seed):
    """After each of 100 flips: an error, or exactly what is left."""
    rng, whole = random.Random(seed), used.read_bytes()
    for _ in range(100):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        used.write_bytes(content)
        try:
            assert not spend(used, "en", 0.26, 0.0, ONE)
            assert not spend(used, "de", 0.51, 0.0, ONE)
            assert (spent(used, "en"), spent(used, "de")) == ((0.75, 2e-6), (0.5, 0.0))
        except FedsimError:
            pass
