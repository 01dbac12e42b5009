from __future__ import annotations

import math

import pytest
from fleet_toys import HOUR, thorough
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import FedsimError
from fedsim.fleet.windows import ALWAYS, read_hours, shift_hours, windows_of, write_hours

DAY = 24 * HOUR
NIGHT = windows_of(read_hours("22-7"))


def test_texts_and_windows():
    assert read_hours("always") == ALWAYS
    assert read_hours("22-7") == ((22, 9),)
    assert read_hours("22-7 12.5-13") == ((12.5, 0.5), (22, 9))
    assert read_hours("0-24") == ALWAYS
    for text in ("always", "12.5-13.5 22-7", "0-6 23-24"):
        assert write_hours(read_hours(text)) == text


def test_texts_that_are_not_windows():
    for text in ("", "22", "22:7", "x-7", "25-3", "3-3", "nan-3", "-1-3"):
        with pytest.raises(FedsimError, match="write always, or hours from-to"):
            read_hours(text)


@thorough
@given(st.lists(st.integers(0, 23), min_size=3, max_size=4, unique=True))
def test_windows_that_overlap(marks):
    first, *_, last = sorted(marks)
    inside = sorted(marks)[1]
    at_day, at_night = f"{first}-{last} {inside}-{last}", f"{last}-{inside} {first}-{inside}"
    for text in (at_day, at_night, f"{first}-{last} {first}-{last}"):
        with pytest.raises(FedsimError, match=f"'{text}' overlap: merge them"):
            read_hours(text)


def test_a_night_by_hand():
    # The round begins at midnight, in the middle of the window: seven hours are left of it.
    assert NIGHT.finish(0, 7 * HOUR) == 7 * HOUR
    assert NIGHT.finish(0, 7 * HOUR + 1) == 22 * HOUR + 1
    assert NIGHT.finish(10 * HOUR, 1) == 22 * HOUR + 1
    assert NIGHT.finish(10 * HOUR, 9 * HOUR) == DAY + 7 * HOUR
    assert NIGHT.finish(10 * HOUR, 0) == 10 * HOUR
    assert NIGHT.spell(10 * HOUR) == (22 * HOUR, DAY)
    assert NIGHT.spell(3 * HOUR) == (3 * HOUR, 7 * HOUR)
    # At its very end a window is closed.
    assert NIGHT.spell(7 * HOUR) == (22 * HOUR, DAY)
    assert windows_of(ALWAYS).spell(5) == (5, math.inf)


def test_the_hour_at_which_a_round_begins():
    noon = windows_of(read_hours("22-7"), begin_hour=12)
    assert noon.spell(0) == (10 * HOUR, 12 * HOUR)
    assert noon.finish(0, HOUR) == 11 * HOUR


@st.composite
def hours(draw):
    marks = sorted(draw(st.sets(st.integers(0, 23), min_size=2, max_size=8)))
    pairs = list(zip(marks[::2], marks[1::2], strict=False))
    return " ".join(f"{a}-{b}" for a, b in pairs)


@thorough
@given(hours(), st.integers(0, 50), st.integers(1, 60), st.integers(0, 23))
def test_work_in_windows_is_work_hour_by_hour(text, start, length, begin):
    is_open = [False] * 24
    for a, b in (map(int, part.split("-")) for part in text.split()):
        for hour in range(a, b):
            is_open[hour] = True
    windows = windows_of(read_hours(text), begin)
    hour, done = start, 0
    while done < length:
        done += is_open[(hour + begin) % 24]
        hour += 1
    assert windows.finish(start * HOUR, length * HOUR) == pytest.approx(hour * HOUR, abs=1e-6)
    worked = windows.elapsed(hour * HOUR) - windows.elapsed(start * HOUR)
    assert worked == pytest.approx(length * HOUR, abs=1e-6)
    opens, closes = windows.spell(start * HOUR)
    first = next(h for h in range(start, start + 25) if is_open[(h + begin) % 24])
    last = next(h for h in range(first, first + 25) if not is_open[(h + begin) % 24])
    assert (opens, closes) == (first * HOUR, last * HOUR)


def test_shifted_windows():
    assert shift_hours(((22.0, 9.0),), 3) == ((1.0, 9.0),)
    assert shift_hours(((1.0, 2.0), (22.0, 1.0)), -2) == ((20.0, 1.0), (23.0, 2.0))
    assert shift_hours(ALWAYS, 3) == ALWAYS
