"""Atomic writing: the old file or the new one, and nothing beside it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from fedsim.base.files import atomic_write, read_text, write_text
from fedsim.errors import FedsimError


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "a" / "b" / "c.bin"
    with atomic_write(path) as file:
        file.write(b"one")
        file.flush()
        assert not path.exists()
        file.write(b"two")
    assert path.read_bytes() == b"onetwo"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def break_off(path, durable, error):
    with atomic_write(path, durable=durable) as file:
        file.write(b"half of it")
        raise error


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_nothing_beside_it(error, durable, tmp_path):
    path = tmp_path / "a.txt"
    for before in (None, b"old"):
        if before is not None:
            path.write_bytes(before)
        with pytest.raises(error):
            break_off(path, durable, error)
        assert [p.read_bytes() for p in tmp_path.iterdir()] == [before] * (before is not None)


@pytest.mark.parametrize("fails", ["fsync", "chmod", "replace"])
def test_a_disk_that_fails_at_the_end_leaves_the_old_file(fails, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_what_is_durable_waits_for_the_disk(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(handle) or fsync(handle))
    for durable in (True, False):
        with atomic_write(tmp_path / "a", durable=durable) as file:
            file.write(b"x")
    assert len(synced) == 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "file" / "a.txt", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_its_place(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "a", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_of_many_writers_at_once_one_wins_whole(tmp_path):
    path = tmp_path / "a.bin"
    texts = [bytes([65 + i]) * 50_000 for i in range(6)]
    path.write_bytes(texts[0])
    seen, done = set(), threading.Event()

    def write(text):
        for _ in range(10):
            with atomic_write(path, durable=False) as file:
                for start in range(0, len(text), 10_000):
                    file.write(text[start : start + 10_000])

    def read():
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert seen <= set(texts)
    assert path.read_bytes() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_utf8_and_long_names_are_fine(tmp_path):
    path = tmp_path / ("n" * 240 + ".txt")
    write_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()


def test_only_regular_files_are_read(tmp_path):
    pipe, good = tmp_path / "pipe", tmp_path / "good"
    os.mkfifo(pipe)
    good.write_bytes(b"\xef\xbb\xbfna\xc3\xafve")
    assert read_text(good, 100) == "naïve"
    for path, words in (
        (pipe, "a named pipe: name a regular file"),
        (tmp_path, "a folder: name a regular file"),
        (tmp_path / "none", "the file does not exist: check the path"),
        (tmp_path / ("x" * 300), "file name too long: check the path"),
        (tmp_path / "a\0b", "no file has such a name"),
    ):
        with pytest.raises(FedsimError, match=words):
            read_text(path, 100)
    with pytest.raises(FedsimError, match="this is a device"):
        read_text(Path("/dev/zero"), 100)
    with pytest.raises(FedsimError, match="the file has 9 bytes, more than the 5 that are read"):
        read_text(good, 5)
    good.write_bytes(b"a\n\xff")
    with pytest.raises(FedsimError, match="good:2: the file is not UTF-8"):
        read_text(good, 100)
