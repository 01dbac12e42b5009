"""The result of an attack: one figure, its interval, and its value for guessing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["gives away", "not distinguishable", "below chance", "not measured"]

EER = "EER"
"""The only figure that is smaller for a better attack."""


@dataclass(frozen=True)
class Finding:
    """One figure of one attack on one release, as a fraction: 0.05 is 5 %."""

    attack: str
    """`attribute`, `re-identification` or `membership`."""
    attribute: str
    """What the attack infers: `gender`, `the speaker`, `a tuning clip`."""
    release: str
    """Name of the release."""
    figure: str
    """`AUC`, `accuracy`, `rank-1`, `EER`, `TPR at 1 % FPR`, ..."""
    value: float | None
    """None where the figure was not measured; `note` then says why."""
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    chance: float
    """The value that an attack without the release reaches."""
    n: int
    """Number of cases judged."""
    note: str
    """Remarks without a full stop; may be empty."""

    @property
    def verdict(self) -> Verdict:
        """Where the interval lies against chance."""
        if self.value is None or self.low is None or self.high is None:
            return "not measured"
        better, worse = self.low > self.chance, self.high < self.chance
        if self.figure == EER:
            better, worse = worse, better
        if better:
            return "gives away"
        return "below chance" if worse else "not distinguishable"

    def sentence(self) -> str:
        """Return the verdict in words, with the figure, its interval and chance."""
        if self.value is None or self.low is None or self.high is None:
            return f"{self.release}: no {self.figure} for {self.attribute}: {self.note}"
        measured = (
            f"{self.figure} {self.value:.3f} (95 % interval {self.low:.3f} to {self.high:.3f},"
            f" chance {self.chance:.3f}, n = {self.n:,})"
        )
        says = {
            "gives away": f"gives away {self.attribute}",
            "not distinguishable": f"{self.attribute} is not distinguishable from chance",
            "below chance": f"the attack on {self.attribute} does worse than chance",
        }[self.verdict]
        joint = " " if self.verdict == "gives away" else ": "
        return f"{self.release}{joint}{says}: {measured}"
