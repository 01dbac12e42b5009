"""The ledger: transactions, what survives a kill, and an error for every bad file."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import astuple, fields, replace

import pytest

from fedsim.errors import FedsimError
from fedsim.results.ledger import Ledger
from fedsim.results.ledger_reader import read_ledger
from fedsim.results.ledger_schema import TABLES, VERSION, insert
from fedsim.results.records import Event, Failure, Log, Payload, Planned, Release, Workload
from fedsim.results.rows import Plan, Row, Sensed
from fedsim.results.sqlite import connect, explained, transaction

ROW = Row(
    client="en",
    method="myqasr/cosine",
    allocation="myqasr",
    calibration="cosine",
    rounding="compensated",
    moments="own",
    tuned_on="en",
    budget_bytes=2**40,
    file_bytes=31_457_280,
    mean_bits=0.1 + 0.2,
    clips=40,
    errors=12,
    words=96,
    wer=0.125,
    char_errors=None,
    chars=0,
    cer=None,
    correct=None,
    accuracy=None,
    plan_sha256="ab" * 32,
)

EVENT = Event("done", "sense", 1, "no answer", "the request was lost")


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def test_rows_come_back_equal_and_sorted(ledger):
    fp32 = replace(ROW, method="fp32", tuned_on="")
    other = replace(ROW, tuned_on="aa")
    german = replace(ROW, client="de")
    ledger.finish_client("en", [ROW, other, fp32])
    ledger.finish_client("de", [german])
    assert ledger.rows() == [german, fp32, other, ROW]
    assert [type(v) for v in astuple(ledger.rows()[0])] == [type(v) for v in astuple(ROW)]
    assert ledger.finished() == {"en", "de"}


def test_a_client_may_finish_with_no_rows_and_again_with_others(ledger):
    ledger.finish_client("en", [])
    assert (ledger.rows(), ledger.finished()) == ([], {"en"})
    ledger.finish_client("en", [ROW])
    ledger.finish_client("en", [replace(ROW, errors=3)])
    assert [row.errors for row in ledger.rows()] == [3]


def test_rows_that_cannot_be_right_are_refused_whole(ledger):
    with pytest.raises(ValueError, match="pass only its own"):
        ledger.finish_client("en", [ROW, replace(ROW, client="de")])
    with pytest.raises(ValueError, match="pass one of them"):
        ledger.finish_client("en", [ROW, replace(ROW, errors=3)])
    with pytest.raises(FedsimError, match="NOT NULL"):
        ledger.finish_client("en", [ROW, replace(ROW, method="x", clips=None)])
    assert (ledger.rows(), ledger.finished()) == ([], set())


def test_failures_and_releases(ledger):
    ledger.finish_client("en", [ROW])
    ledger.fail_client("en", "personalize", "because")
    ledger.fail_client("de", "sense", "no clips")
    ledger.fail_client("de", "sense", "no clips")  # sent again after a restart
    assert ledger.failures() == [
        Failure("de", "sense", "no clips"),
        Failure("en", "personalize", "because"),
    ]
    assert ledger.rows() == [ROW]
    medians = Release("en", "sense", "up", "medians", 352, 1.5)
    many = [Release("de", "personalize", "down", "plan", 44), Release("de", "x", "up", "y", 0)]
    ledger.write(Log([medians]))
    ledger.write(Log(many))
    assert ledger.all_releases() == [medians, *many]


def test_a_log_is_written_with_what_it_belongs_to_or_not_at_all(ledger):
    sent = Release("en", "sense", "up", "medians", 352)
    lost = Event("en", "sense", 1, "no answer", "the request was lost; sent again after 30 s")
    ledger.finish_client("en", [ROW], log=Log([sent], [lost]))
    assert (ledger.all_releases(), ledger.events()) == ([sent], [lost])
    bad = replace(ROW, client="de", clips=None)
    with pytest.raises(FedsimError, match="NOT NULL"):
        ledger.finish_client("de", [bad], log=Log([sent], [lost]))
    ledger.fail_client("de", "sense", "no answer", "dropped", Log([], [replace(lost, attempt=2)]))
    assert (len(ledger.all_releases()), [e.attempt for e in ledger.events()]) == (1, [1, 2])
    assert ledger.failures() == [Failure("de", "sense", "no answer", "dropped")]


def test_what_is_kept_of_a_client_that_is_not_finished(ledger):
    for key in ("b", "a"):
        ledger.keep(key, "sense", f"summary of {key}", Log([Release(key, "sense", "up", "x", 8)]))
    ledger.keep("a", "personalize", "receipt of a")
    ledger.keep("a", "sense", "again")
    assert list(ledger.kept("sense")) == ["again", "summary of b"]
    assert list(ledger.kept("personalize")) == ["receipt of a"]
    assert ledger.finished() == set()


def test_what_is_begun_again_when_a_run_is_resumed(ledger):
    """done: finished. half: sensed. gone: was under way. lost: failed, one: finished in part."""
    log = {key: Log([Release(key, "sense", "up", "x", 8)]) for key in ("half", "lost", "one")}
    ledger.keep("half", "sense", "summary", log["half"])
    ledger.write(Log([Release("half", "evaluate", "down", "y", 8)]))
    ledger.finish_client("done", [replace(ROW, client="done")], log=Log([], [EVENT]))
    ledger.write(Log([Release("gone", "sense", "up", "x", 8)], [replace(EVENT, client="gone")]))
    ledger.keep("lost", "sense", "summary", log["lost"])
    ledger.fail_client("lost", "personalize", "died")
    ledger.fail_client("one", "plan", "a model of lost is missing")
    ledger.finish_client("one", [replace(ROW, client="one")], log=log["one"])
    ledger.begin_again()
    assert ledger.finished() == {"done"}
    assert [row.client for row in ledger.rows()] == ["done"]
    assert ledger.failures() == []
    assert list(ledger.kept("sense")) == ["summary"]
    assert ledger.all_releases() == log["half"].releases
    assert [event.client for event in ledger.events()] == ["done"]
    ledger.begin_again()  # a second time changes nothing
    assert (ledger.finished(), ledger.all_releases()) == ({"done"}, log["half"].releases)


def test_several_releases_are_written_all_or_none(ledger):
    with pytest.raises(FedsimError, match="CHECK"):
        ledger.write(Log([Release("en", "a", "up", "b", 1), Release("en", "a", "aside", "b", 1)]))
    assert ledger.all_releases() == []


def test_what_was_written_is_there_when_opened_again(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as first:
        first.finish_client("en", [ROW])
    with Ledger(path) as second:
        assert second.rows() == [ROW]


def test_threads_write_at_the_same_time(ledger):
    def write(n):
        for i in range(10):
            ledger.finish_client(f"{n}-{i}", [replace(ROW, client=f"{n}-{i}")])

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.rows()) == len(ledger.finished()) == 40


_WRITE_UNTIL_KILLED = """
import sys
from dataclasses import replace
from test_results_ledger import ROW
from fedsim.results.ledger import Ledger
ledger = Ledger(sys.argv[1])
for i in range(100_000):
    rows = [replace(ROW, client=f"c{i}", method=f"m{j:03}") for j in range(200)]
    ledger.finish_client(f"c{i}", rows)
    print(f"c{i}", flush=True)
"""


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kill_9_leaves_whole_clients_only(tmp_path, seed):
    path = tmp_path / "ledger.sqlite"
    child = subprocess.Popen(
        [sys.executable, "-c", _WRITE_UNTIL_KILLED, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])},
    )
    reported = [child.stdout.readline().strip() for _ in range(5)]
    threading.Event().wait(random.Random(seed).random() * 0.02)  # somewhere in a transaction
    child.send_signal(signal.SIGKILL)
    reported += child.stdout.read().split()
    child.wait()
    with Ledger(path) as ledger:
        finished = ledger.finished()
        count = dict.fromkeys(finished, 0)
        for row in ledger.rows():
            count[row.client] += 1  # a KeyError would be a client that was written in part
    assert set(reported) <= finished  # what was reported as finished is kept
    assert len(finished) <= len(reported) + 1
    assert set(count.values()) == {200}


def test_a_transaction_that_did_not_commit_is_not_seen(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.finish_client("en", [ROW])
    half = sqlite3.connect(path, isolation_level=None)
    half.execute("BEGIN IMMEDIATE")
    half.execute("DELETE FROM results")
    with sqlite3.connect(path) as reader:
        assert reader.execute("SELECT count(*) FROM results").fetchone() == (1,)
    half.close()
    with Ledger(path) as ledger:
        assert ledger.rows() == [ROW]


def test_a_locked_ledger(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Ledger(path, busy_s=0.05) as ledger:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(FedsimError, match=r"locked .* for 0.05 s: end that process"):
            ledger.finish_client("en", [ROW])
        holder.execute("ROLLBACK")
        holder.close()
        ledger.finish_client("en", [ROW])  # and it goes on
        assert ledger.rows() == [ROW]


def test_a_ledger_of_another_version_is_refused_in_a_sentence(ledger):
    ledger.finish_client("en", [ROW])
    with closing(sqlite3.connect(ledger.path)) as db:
        db.execute(f"PRAGMA user_version = {VERSION - 1}")
    with pytest.raises(FedsimError) as caught:
        Ledger(ledger.path)
    assert str(caught.value) == (
        f"{ledger.path}: this is not a ledger of this version of fedsim (its format is"
        f" {VERSION - 1}, not {VERSION}): start a run in another folder"
    )


def add_clients(db, path, n=1):
    """Add clients through a connection of their own, as a ledger writes them."""
    with explained(path, "ledger"), transaction(db):
        insert(db, "clients", [(f"client {i}" * 20,) for i in range(n)])


def test_a_full_disk_keeps_what_was_written(ledger):
    ledger.finish_client("en", [ROW])
    with closing(connect(ledger.path)) as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(FedsimError, match="free some space"):
            add_clients(db, ledger.path, n=500)
    assert (ledger.rows(), ledger.finished()) == ([ROW], {"en"})


def test_a_ledger_that_may_not_be_written(ledger):
    with closing(connect(ledger.path)) as db:
        db.execute("PRAGMA query_only = 1")
        with pytest.raises(FedsimError, match="allow writing"):
            add_clients(db, ledger.path)
    assert ledger.finished() == set()


def test_files_that_are_not_a_ledger(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"no database, but long enough to look like one " * 200)
    with pytest.raises(FedsimError, match="restore it, or name another --out folder"):
        Ledger(path)
    with pytest.raises(FedsimError, match="check that its folder exists"):
        Ledger(tmp_path / "no" / "ledger.sqlite")
    other = tmp_path / "other.sqlite"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(FedsimError, match="start a run in another folder"):
        Ledger(other)


def test_a_damaged_ledger(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.finish_client("en", [replace(ROW, method=f"m{i}") for i in range(500)])
    content = bytearray(path.read_bytes())
    content[8192:] = os.urandom(len(content) - 8192)
    path.write_bytes(content)
    with pytest.raises(FedsimError, match="restore it"), Ledger(path) as ledger:
        ledger.rows()


def test_columns_are_the_fields_of_records():
    """Values are written in the order of a record's fields."""
    records = {"releases": Release, "events": Event, "workloads": Workload, "payloads": Payload}
    records |= {"failures": Failure, "results": Row}
    for name, record in records.items():
        columns = [column.name for column in TABLES[name].columns]
        assert sorted(columns) == sorted(field.name for field in fields(record))
        if name != "failures":
            assert columns == [field.name for field in fields(record)]


def test_numbers_come_back_as_they_fit_their_checksum(ledger):
    """SQLite keeps -0.0 as 0, an int in a column of floats as a float, and no NaN."""
    strange = replace(ROW, mean_bits=4, wer=-0.0, accuracy=float("nan"), low=1e308, high=2.0**53)
    ledger.finish_client("en", [strange])
    (row,) = ledger.rows()
    assert (row.mean_bits, row.wer, row.accuracy) == (4.0, 0.0, None)
    assert (row.low, row.high) == (1e308, 2.0**53)
    ledger.check()


def test_facts_are_replaced_kind_by_kind(ledger):
    ledger.put_facts({"setting": [("seed", "1"), ("name", '"é"')], "package": [("x", "1")]})
    ledger.put_facts({"setting": [("seed", "2")], "file": []})
    assert ledger.facts("setting") == {"seed": "2"}
    assert (ledger.facts("package"), ledger.facts("file")) == ({"x": "1"}, {})
    with pytest.raises(FedsimError, match="UNIQUE"):
        ledger.put_facts({"package": [], "setting": [("a", "1"), ("a", "2")]})
    assert ledger.facts("package") == {"x": "1"}


@pytest.fixture
def full(tmp_path):
    """A ledger with rows in every table."""
    path = tmp_path / "full.sqlite"
    with Ledger(path) as ledger:
        log = Log([Release("en", "sense", "up", "x", 8, 0.5)], [replace(EVENT, client="en")])
        log.workloads.append(Workload("en", "sense", 3, 4.5))
        log.planned.append(Planned("en", "uniform", (4, 5), "it"))
        plan = Plan("en", ROW.method, "en", (4, 5), (1, 0), (3, 4))
        payload = Payload("en", 1, "values", b"payload")
        ledger.finish_client("en", [ROW], [plan], Sensed("en", (1.0, 2.0)), log, [payload])
        ledger.keep("de", "sense", "reply")
        ledger.fail_client("fr", "sense", "no clips")
        ledger.put_facts({"setting": [("seed", "1")]})
    return path


def everything(ledger):
    return (
        *(ledger.rows(), list(ledger.plans()), list(ledger.sensed()), ledger.payloads()),
        *(list(ledger.kept("sense")), ledger.failures(), ledger.events(), ledger.all_releases()),
        *(ledger.workloads(), ledger.planned("uniform"), ledger.message_bytes()),
        *(ledger.finished(), ledger.facts("setting")),
    )


def test_every_table_has_a_checksum_per_row(full):
    with closing(sqlite3.connect(full)) as db:
        for table in TABLES:
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone() >= (1,)
    for name, table in TABLES.items():
        for column in table.columns:
            copy = full.with_name("copy.sqlite")
            copy.write_bytes(full.read_bytes())
            other = {str: "'up'", int: "7", float: "'x'", bytes: "x'0102'"}[column.kind]
            other = "'down'" if column.name == "direction" else other
            with closing(sqlite3.connect(copy)) as db, db:
                db.execute(f"UPDATE {name} SET {column.name} = {other}")
            with (
                read_ledger(copy) as ledger,
                pytest.raises(FedsimError, match=r"copy\.sqlite: .*is damaged: restore it"),
            ):
                ledger.check()


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_is_an_error_or_without_effect(full, seed):
    rng, whole = random.Random(seed), full.read_bytes()
    with read_ledger(full) as ledger:
        before = everything(ledger)
    for _ in range(100):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        full.write_bytes(content)
        try:
            with read_ledger(full) as ledger:
                ledger.check()
                assert everything(ledger) == before
        except FedsimError:
            pass


def test_reading_makes_no_file(full):
    files = sorted(full.parent.iterdir())
    with read_ledger(full) as ledger:
        assert ledger.finished() == {"en"}
        assert sorted(full.parent.iterdir()) == files
    with pytest.raises(FedsimError, match="no such file"), read_ledger(full.with_name("no")):
        pass
    assert sorted(full.parent.iterdir()) == files


def test_reading_what_a_killed_run_left(full, tmp_path):
    """Its last transactions are in the write-ahead log, with or without a file for locking."""
    left = tmp_path / "left"
    left.mkdir()
    with Ledger(full) as ledger:
        ledger.finish_client("late", [replace(ROW, client="late")])
        for name in (full.name, f"{full.name}-wal"):
            shutil.copy(full.with_name(name), left / name)
    before = {file.name: file.read_bytes() for file in left.iterdir()}
    with read_ledger(left / full.name) as ledger:
        assert ledger.finished() == {"en", "late"}
    assert {file.name: file.read_bytes() for file in left.iterdir()} == before


def test_durability_settings(ledger):
    with closing(connect(ledger.path)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
