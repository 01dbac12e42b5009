"""What a path or hub id in a scenario stands for."""

from pathlib import Path

import pytest

from fedsim.base.paths import cache_dir, is_path, resolve
from fedsim.errors import FedsimError


def test_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    assert resolve("cache:whisper-base", Path("/base")) == f"{tmp_path}/whisper-base"
    monkeypatch.delenv("FEDSIM_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_dir() == Path("/home/somebody/.cache/fedsim")


@pytest.mark.parametrize("text", ["cache:", "cache:/etc", "cache:../x", "cache:a/../../b"])
def test_a_cache_name_stays_in_the_cache(text):
    with pytest.raises(FedsimError, match="write cache:NAME"):
        resolve(text, Path("/base"))


def test_what_is_a_path_and_what_a_hub_id(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("DATA", "/data")
    (tmp_path / "org" / "here").mkdir(parents=True)
    assert resolve("org/model", tmp_path) == "org/model"
    assert not is_path(resolve("org/model", tmp_path))
    assert resolve("org/here", tmp_path) == str(tmp_path / "org/here")
    assert resolve("./org/model", tmp_path) == str(tmp_path / "org/model")
    assert resolve("../x", tmp_path) == str(tmp_path.parent / "x")
    assert resolve("/a/b/../c", tmp_path) == "/a/c"
    assert resolve("~/m", tmp_path) == "/home/somebody/m"
    assert resolve("$DATA/m", tmp_path) == resolve("${DATA}/m", tmp_path) == "/data/m"
    assert is_path(resolve("$DATA/m", tmp_path))


def test_an_unset_variable_is_named(monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(FedsimError, match=r"\$NOWHERE.*set that variable"):
        resolve("$NOWHERE/m", Path("/base"))
