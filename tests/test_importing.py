from __future__ import annotations

import gc
import sys

import pytest

from fedsim.importing import importing


@pytest.fixture(autouse=True)
def collector():
    """Leave the collector as it was."""
    yield
    gc.unfreeze()
    gc.enable()


def test_the_collector_is_off_while_packages_are_imported_and_on_again():
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    with importing():
        pass
    assert not gc.isenabled()


def test_what_was_imported_is_set_apart_once(monkeypatch):
    before = gc.get_freeze_count()
    with importing():
        pass  # everything is there already
    assert gc.get_freeze_count() == before
    with importing():
        monkeypatch.setitem(sys.modules, "as_if_imported", sys)
    assert gc.get_freeze_count() > before
