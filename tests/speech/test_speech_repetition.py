"""Loops of a decoder, against every way to write a hypothesis as a beginning and copies of it."""

from __future__ import annotations

from itertools import cycle, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.speech.repetition import (
    MIN_COPIES,
    MIN_COPIES_AT_MAX,
    MIN_TOKENS,
    MIN_TOKENS_AT_MAX,
    find_first_loop,
    find_loop,
    stop,
)

END, LONG = 99, 10_000
TOKENS = st.lists(st.integers(0, 2), max_size=40)
GRAM = st.lists(st.integers(0, 3), min_size=1, max_size=9)


def by_hand(tokens, min_copies, min_tokens):
    """The least that a beginning and one n-gram, of which the rest are copies, can be together."""
    n, found = len(tokens), []
    for size in range(1, n + 1):
        for start in range(n - size + 1):
            gram, rest = tokens[start : start + size], tokens[start:]
            copies = list(islice(cycle(gram), len(rest)))
            enough = len(rest) // size >= min_copies and len(rest) >= min_tokens
            if copies == rest and enough:
                found.append(start + size)
    return min(found, default=None)


def decoded(tokens, max_tokens=LONG, end=END):
    """What `stop` makes of a hypothesis that would be these tokens, token by token."""
    for n in range(1, len(tokens) + 1):
        found = stop(tokens[:n], end, max_tokens)
        if found is not None:
            return n, *found
    return None


@given(TOKENS, st.integers(2, 5), st.integers(2, 24))
def test_loops_are_those_found_by_trying_all(tokens, min_copies, min_tokens):
    assert find_loop(tokens, min_copies, min_tokens) == by_hand(tokens, min_copies, min_tokens)


@given(TOKENS, GRAM, st.integers(4, 8), st.integers(0, 8))
def test_a_loop_keeps_its_beginning_and_one_copy(head, gram, copies, more):
    """What is dropped follows from what is kept: nothing but repetition is lost."""
    tokens = head + list(islice(cycle(gram), len(gram) * copies + more))
    kept = find_loop(tokens, 4, 4)
    assert 0 < kept <= len(head) + len(gram)
    rests = (
        list(islice(cycle(tokens[start:kept]), len(tokens) - start)) == tokens[start:]
        for start in range(kept)
    )
    assert any(rests)
    assert find_loop(gram * 4, 4, 4) <= len(gram)


@given(TOKENS, st.integers(2, 4), st.integers(2, 12))
def test_the_first_loop_is_that_of_the_shortest_prefix(tokens, min_copies, min_tokens):
    found = [by_hand(tokens[:n], min_copies, min_tokens) for n in range(len(tokens) + 1)]
    expected = next((kept for kept in found if kept is not None), None)
    assert find_first_loop(tokens, min_copies, min_tokens) == expected


@given(TOKENS, GRAM, TOKENS)
def test_a_clip_is_judged_by_its_past_alone(head, gram, future):
    """Whatever a batch goes on to decode changes nothing about a clip that has stopped."""
    tokens = head + gram * 30
    n, kept, looped = decoded(tokens)
    assert looped
    assert decoded(tokens[:n] + future) == (n, kept, looped)
    assert n <= len(head) + max(MIN_TOKENS, MIN_COPIES * len(gram))


@given(TOKENS, st.integers(1, 45))
def test_every_hypothesis_stops_at_its_end_or_at_its_maximum_at_the_latest(tokens, max_tokens):
    tokens = [*tokens, END]
    n, kept, looped = decoded([*tokens, *range(100, 200)], max_tokens)
    assert n <= min(len(tokens), max_tokens)
    assert kept < n if looped else kept == n
    if n < max_tokens and not looped:
        assert tokens[n - 1] == END


@given(st.lists(st.integers(0, 90), unique=True, min_size=1, max_size=60))
def test_what_repeats_nothing_is_whole(tokens):
    assert decoded([*tokens, END]) == (len(tokens) + 1, len(tokens) + 1, False)
    assert decoded(tokens, len(tokens)) == (len(tokens), len(tokens), False)


@pytest.mark.parametrize(
    ("words", "times"),
    [
        ("no", 20),
        ("0 ,", 11),  # a telephone number
        ("no , no , no .", 3),
        ("please hold the line .", 4),
        ("press one to enter an extension . press two to use the directory .", 3),
    ],
)
def test_people_repeat_themselves_too(words, times):
    said = [10 + len(word) for word in words.split()] * times
    whole = [1, 2, *said, 3, END]
    assert decoded(whole) == (len(whole), len(whole), False)


def test_a_running_hypothesis_needs_copies_and_tokens():
    for size in range(1, 12):
        gram = list(range(size))
        needed = max(MIN_TOKENS, MIN_COPIES * size)
        tokens = [50, 51, *gram * 40]
        assert decoded(tokens) == (2 + needed, 2 + size, True)
        assert decoded([*tokens[: 1 + needed], END]) == (2 + needed, 2 + needed, False)


def test_at_its_maximum_a_short_hypothesis_loops_sooner():
    said, again = [1, 2, 3, 4], [5, 6, 7]
    looping = [*said, *again * 3]
    assert decoded(looping, len(looping)) == (13, 7, True)
    assert decoded(looping, len(looping) + 1) is None
    enough = [*said, *[5] * MIN_TOKENS_AT_MAX]
    assert decoded(enough, len(enough)) == (12, 5, True)
    assert decoded(enough[:-1], len(enough) - 1) == (11, 11, False)
    assert MIN_COPIES_AT_MAX == 2
    # The loop need not last: it changes here, and goes on in another.
    changing = [*said, *again * 3, 8, 9, 8, 9, 8]
    assert decoded(changing, len(changing)) == (18, 7, True)
    # The end counts even at the last place.
    assert decoded([*looping, END], len(looping) + 1) == (14, 14, False)
