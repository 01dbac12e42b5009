from __future__ import annotations

import gc

import pytest

from fedsim.base.imports import importing


@pytest.fixture(autouse=True)
def collector():
    """Leave the collector as it was."""
    yield
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


def test_objects_of_the_caller_can_still_be_collected():
    before = gc.get_freeze_count()
    with importing():
        import json  # noqa: F401
    assert gc.get_freeze_count() == before
