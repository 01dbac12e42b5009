"""When a device may work: windows of the day, and how long work takes within them.

A device works only in its windows. Work that is unfinished when a window closes continues when the
next one opens; so its length is counted in available time: the seconds inside windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise

from fedsim.errors import FedsimError

HOURS = 24.0
_HOUR_S = 3600.0
_DAY_S = HOURS * _HOUR_S

Hours = tuple[tuple[float, float], ...]
"""Windows of every day: (hour at which it opens, its length in hours)."""

ALWAYS: Hours = ((0.0, HOURS),)


@dataclass(frozen=True)
class Windows:
    """The windows of one device for one round, in seconds of the day."""

    opens: tuple[float, ...]
    closes: tuple[float, ...]
    before: tuple[float, ...]
    """Available seconds of the day before each window opens."""
    day: float
    """Available seconds per day."""
    begin: float
    """Second of the day at which the round begins."""

    @property
    def always(self) -> bool:
        """Whether the device may work at any time."""
        return self.day == _DAY_S

    def elapsed(self, t: float) -> float:
        """Return the available seconds from the first midnight to second `t` of the round."""
        days, second = divmod(t + self.begin, _DAY_S)
        inside = (
            min(max(second - opens, 0.0), closes - opens)
            for opens, closes in zip(self.opens, self.closes, strict=True)
        )
        return days * self.day + sum(inside)

    def finish(self, t: float, seconds: float) -> float:
        """Return when work of `seconds` available seconds ends if it may begin at `t`."""
        if self.always or seconds <= 0:
            return t + max(seconds, 0.0)
        total = self.elapsed(t) + seconds
        days = math.ceil(total / self.day) - 1
        rest = total - days * self.day
        # The last window that opens before the work is done; work may end as a window closes.
        i = max(i for i, done in enumerate(self.before) if done < rest or i == 0)
        return max(t, days * _DAY_S + self.opens[i] + rest - self.before[i] - self.begin)

    def spell(self, t: float) -> tuple[float, float]:
        """Return from when, at `t` or later, and until when a device may work next."""
        if self.always:
            return t, math.inf
        midnight = math.floor((t + self.begin) / _DAY_S) * _DAY_S - self.begin
        for days in (0.0, _DAY_S):
            for opens, closes in zip(self.opens, self.closes, strict=True):
                if midnight + days + closes > t:
                    return max(t, midnight + days + opens), midnight + days + closes
        raise AssertionError("a day without a window")


def windows_of(hours: Hours, begin_hour: float = 0.0) -> Windows:
    """Return the windows of a day for a round that begins at its hour `begin_hour`.

    `hours` do not overlap (`read_hours` checks this); one may extend past midnight.
    """
    pieces = []
    for start, length in hours:
        first = start % HOURS
        pieces.append((first, min(first + length, HOURS)))
        if first + length > HOURS:
            pieces.append((0.0, first + length - HOURS))
    pieces.sort()
    opens, closes = zip(*((a * _HOUR_S, b * _HOUR_S) for a, b in pieces), strict=True)
    lengths = [b - a for a, b in zip(opens, closes, strict=True)]
    sums = list(accumulate(lengths, initial=0.0))
    return Windows(opens, closes, tuple(sums[:-1]), sums[-1], begin_hour * _HOUR_S)


def read_hours(text: str) -> Hours:
    """Return the windows of a text such as `always`, `22-7` or `12.5-13.5 22-7`, in order.

    Raises:
        FedsimError: if there is no window, an hour is outside 0..24, or two windows overlap.
    """
    if text.strip() == "always":
        return ALWAYS
    windows = []
    for part in text.split():
        first, dash, last = part.partition("-")
        try:
            start, end = float(first), float(last)
        except ValueError:
            dash = ""
        if not dash or not (0 <= start < HOURS and 0 <= end <= HOURS) or start == end:
            raise FedsimError(
                f"{part!r} is not a window: write always, or hours from-to such as 22-7"
            )
        windows.append((start, end - start if end > start else end - start + HOURS))
    if not windows:
        raise FedsimError("no window is given: write always, or hours from-to such as 22-7")
    windows.sort()
    following = [*windows, (windows[0][0] + HOURS, 0.0)]
    for (start, length), (later, _) in pairwise(following):
        if start + length > later:
            raise FedsimError(f"the windows {text!r} overlap: merge them")
    return tuple(windows)


def write_hours(hours: Hours) -> str:
    """Return the text that `read_hours` reads as these windows."""
    if hours == ALWAYS:
        return "always"
    return " ".join(f"{start:g}-{_end(start + length):g}" for start, length in hours)


def _end(hour: float) -> float:
    return hour if hour <= HOURS else hour - HOURS


def shift_hours(hours: Hours, shift: float) -> Hours:
    """Return the windows `shift` hours later; `always` stays."""
    if hours == ALWAYS:
        return hours
    return tuple(sorted(((start + shift) % HOURS, length) for start, length in hours))
