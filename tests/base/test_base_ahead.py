"""Items made in a thread ahead: in order, not too far ahead, and without a thread that stays."""

import gc
import threading
import time

import pytest

from fedsim.base.ahead import ahead


def threads():
    return [t for t in threading.enumerate() if t.name == "fedsim-ahead"]


def settled(values, n):
    """Wait until a list has `n` values, and a little more; return how many it has then."""
    end = time.monotonic() + 60
    while len(values) < n and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.05)
    return len(values)


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 7, 300])
def test_all_items_in_order(n, depth):
    assert list(ahead(range(n), depth)) == list(range(n))
    assert threads() == []


@pytest.mark.parametrize("depth", [1, 3])
def test_never_more_than_depth_ahead(depth):
    made = []
    items = ahead((made.append(i) or i for i in range(100)), depth)
    time.sleep(0.05)
    assert (made, threads()) == ([], [])  # nothing before the first is asked for
    for i in range(5):
        assert next(items) == i
        assert settled(made, i + 1 + depth) == i + 1 + depth
    items.close()


def test_items_are_made_in_one_other_thread():
    found = set(ahead(threading.get_ident() for _ in range(20)))
    assert len(found) == 1
    assert threading.get_ident() not in found


def test_the_next_item_is_made_while_one_is_used():
    """Here the consumer waits, with the first item in hand, until the second is being made."""
    second = threading.Event()

    def items():
        yield 1
        second.set()
        yield 2

    for item in ahead(items()):
        assert item == 2 or second.wait(60)


def test_an_error_is_raised_after_the_items_before_it():
    def items():
        yield from (1, 2)
        raise ValueError("the third")

    found = ahead(items())
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(found)
    assert threads() == []
    assert next(found, None) is None


@pytest.mark.parametrize("how", ["close", "drop", "raise"])
def test_a_consumer_that_stops_leaves_no_thread(how):
    closed = threading.Event()

    def items():
        try:
            yield from range(1000)
        finally:
            closed.set()

    def consume(found):
        for item in found:
            if item == 3:
                if how == "raise":
                    raise KeyError(item)
                break
        if how == "close":
            found.close()

    if how == "raise":
        with pytest.raises(KeyError):
            consume(ahead(items()))
    else:
        consume(ahead(items()))
    gc.collect()
    assert threads() == []
    assert closed.is_set()
