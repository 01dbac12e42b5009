"""What makes one client of recordings: speakers, genders or languages, by their clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsim.base.units import count_words
from fedsim.errors import FedsimError
from fedsim.speech.clips import GROUPS, Utterance
from fedsim.speech.survey import ENOUGH, Survey

TUNING_CLIPS, TEST_CLIPS = 16, 40
"""What a client with many clips uses of them."""


@dataclass(frozen=True)
class Grouping:
    """What makes one client, which clients take part, and how many clips each uses."""

    by: str
    why: str
    counts: Mapping[str, int]
    """Client -> its clips, of those that take part."""
    left_out: int

    @property
    def smallest(self) -> tuple[int, str]:
        """Clips and key of the client with the fewest."""
        return min((n, key) for key, n in self.counts.items())

    @property
    def tuning(self) -> int:
        """Clips that a client tunes on."""
        return min(TUNING_CLIPS, max(1, self.smallest[0] // 3))

    @property
    def test(self) -> int:
        """Clips that it is tested on."""
        return min(TEST_CLIPS, self.smallest[0] - self.tuning)


def choose_grouping(found: Survey, usable: Sequence[Utterance]) -> Grouping:
    """Return what makes a client: the first of speaker, gender and language with two clients that
    have enough clips, else the first with two, or one, that have two clips.

    Args:
        found: what the folder holds.
        usable: those of its clips that the model takes.

    Raises:
        FedsimError: if no client could be both tuned and tested.
    """
    reasons: list[str] = []
    tried = []
    for by in GROUPS:
        groups: dict[str, list[Utterance]] = {}
        for utterance in usable:
            key = getattr(utterance, by)
            if key is not None:
                groups.setdefault(key, []).append(utterance)
        counts = {k: len(g) for k, g in sorted(groups.items()) if all(u.text for u in g)}
        enough = {k: n for k, n in counts.items() if n >= ENOUGH}
        if len(enough) > 1:
            why = f"{len(enough):,} of {count_words(len(groups), by)} have {ENOUGH} clips or more"
            why = "; ".join([*reasons, why])
            return Grouping(by, why, enough, len(groups) - len(enough))
        reasons.append(
            f"the clips have no {by}"
            if not groups
            else f"{len(enough)} of {count_words(len(groups), by)} with {ENOUGH} clips or more"
        )
        tried.append((by, {k: n for k, n in counts.items() if n > 1}, len(groups)))
    for least in (2, 1):  # clients
        for by, few, total in tried:
            if len(few) >= least:
                return Grouping(by, "; ".join(reasons), few, total - len(few))
    raise FedsimError(_too_few(found, usable))


def _too_few(found: Survey, usable: Sequence[Utterance]) -> str:
    if not usable:
        return f"{found.path}: every clip is longer than the model takes: cut them into utterances"
    if not any(getattr(u, by) for u in usable for by in GROUPS):
        return (
            f"{found.path}: the layout {found.kind!r} gives no speaker, gender or language for any"
            f" clip: add one of them, so that clips belong to clients"
        )
    if len(usable) == 1:
        return f"{found.path}: there is only one clip, {usable[0].key}: a client needs at least two"
    if any(not u.text for u in usable):
        missing = [u.key for u in usable if not u.text]
        return (
            f"{found.path}: {len(missing):,} of {count_words(len(usable), 'clip')} have no text,"
            f" the first is {missing[0]}: fill in the texts, or remove these clips"
        )
    return (
        f"{found.path}: no speaker, gender or language has two clips, one to tune on and one to be"
        f" tested on: add recordings"
    )
