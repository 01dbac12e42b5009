"""What an attack found: one figure, how sure it is, and what guessing would have reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["gives away", "not distinguishable", "below chance", "not measured"]

EER = "EER"
"""The figure that falls when an attack gets better; all others rise."""


@dataclass(frozen=True)
class Finding:
    """One figure of one attack on one release; shares of 1, so 0.05 is 5 %."""

    attack: str
    """`attribute`, `re-identification` or `membership`."""
    attribute: str
    """What was to be inferred: `gender`, `the speaker`, `a tuning clip`."""
    release: str
    """What the clients sent."""
    figure: str
    """`AUC`, `accuracy`, `rank-1`, `EER`, `TPR at 1 % FPR`, ..."""
    value: float | None
    """None where the sample is too small for the figure; `note` then says why."""
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    chance: float
    """What an attack reaches that has not seen the release."""
    n: int
    """How many cases were judged."""
    note: str
    """A sentence or two without a full stop, or nothing."""

    @property
    def verdict(self) -> Verdict:
        """Whether the interval lies on the attack's side of chance."""
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
