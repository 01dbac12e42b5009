"""The server's side of secure aggregation in groups of clients, over any Grid.

All groups go through each exchange together. A member that does not answer drops out, and no member
is asked twice. A group with too few members left has failed, and the server learns nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fedsim.errors import FedsimError
from fedsim.privacy.bounds import Bounds
from fedsim.privacy.secure_aggregation import server as protocol
from fedsim.privacy.secure_aggregation import wire
from fedsim.privacy.secure_aggregation.codes import decode
from fedsim.protocol import messages as m
from fedsim.scenario.privacy import CohortSettings

R = TypeVar("R", bound=m.Group)
T = TypeVar("T")


class Ask(Protocol):
    """Send each client its message; return the valid answers."""

    def __call__(
        self,
        kind: str,
        messages: Mapping[str, m.Group],
        reply: type[R],
        problem_in: Callable[[str, R], str],
        /,
    ) -> dict[str, R]:
        """`problem_in` returns what is wrong with a client's answer, or ""."""


@dataclass(frozen=True)
class Mean:
    """What the server learned of one group."""

    clients: tuple[str, ...]
    """The members whose values are in the mean."""
    values: tuple[float, ...]
    """Geometric mean of their profiles' values, (n,)."""


def group_means(
    groups: Sequence[Sequence[str]],
    ask: Ask,
    fail: Callable[[str, str], None],
    asking: Callable[[Sequence[str]], None],
    cohort: CohortSettings,
    measure: str,
    bounds: Bounds,
) -> Iterator[Mean]:
    """Go through the four exchanges with every group; yield the mean of each that completes them.

    Args:
        groups: the clients of each.
        ask: sends messages and collects the answers.
        fail: called with a client and a reason, for each remaining client of a group that too many
            left.
        asking: called with the clients of all groups whose sums are about to be unmasked, before
            any of them is asked to help.
        cohort: the threshold.
        measure: name of the sensitivity measure.
        bounds: public bounds of each value.
    """
    place = {client: i for group in groups for i, client in enumerate(group, start=1)}
    thresholds = [max(cohort.min_members, protocol.min_threshold(len(group))) for group in groups]

    def steps(
        alive: Mapping[str, Any], step: Callable[[int, dict[int, Any]], T]
    ) -> Iterator[tuple[int, T]]:
        """Yield (group number, result of `step`) for each group with enough members left."""
        for number, group in enumerate(groups):
            there = {place[c]: alive[c] for c in group if c in alive}
            if not there:
                continue
            try:
                made = step(number, there)
            except FedsimError as error:
                for client in group:
                    if client in alive:
                        fail(client, str(error))
            else:
                yield number, made

    of = {client: number for number, group in enumerate(groups) for client in group}

    def problem_in_keys(client: str, keys: wire.Keys) -> str:
        return protocol.problem_in_keys(keys, place[client])

    def problem_in_envelopes(client: str, envelopes: wire.Envelopes) -> str:
        return protocol.problem_in_envelopes(envelopes, place[client], rosters[of[client]])

    def problem_in_codes(client: str, masked: wire.Masked) -> str:
        expected = 4 * len(bounds.low)
        found = len(masked.codes)
        return "" if found == expected else f"{found} bytes of codes where {expected} were expected"

    def problem_in_shares(client: str, shares: wire.Shares) -> str:
        return protocol.problem_in_shares(shares, posts[of[client]])

    keys = ask(
        m.JOIN, {c: wire.Invitation(p) for c, p in place.items()}, wire.Keys, problem_in_keys
    )
    rosters = dict(steps(keys, lambda g, there: protocol.roster(there.values(), thresholds[g])))
    sent = ask(m.SHARE, _of_members(groups, rosters, keys), wire.Envelopes, problem_in_envelopes)
    posts = dict(steps(sent, lambda g, there: protocol.route(there, rosters[g])))
    low, high = tuple(bounds.low.tolist()), tuple(bounds.high.tolist())
    masked = ask(
        m.MASK,
        {
            client: wire.Post(measure, low, high, post.places, post.sealed)
            for number, group in enumerate(groups)
            for client in group
            if (post := posts.get(number, {}).get(place[client])) is not None
        },
        wire.Masked,
        problem_in_codes,
    )
    alive = dict(steps(masked, lambda g, there: protocol.survivors(there, rosters[g])))
    last = _of_members(groups, alive, masked)
    asking(list(last))
    shares = ask(m.UNMASK, last, wire.Shares, problem_in_shares)

    def mean(number: int, there: dict[int, wire.Shares]) -> Mean:
        codes = {place[c]: masked[c] for c in groups[number] if c in masked}
        total = protocol.total(rosters[number], posts[number], codes, there)
        values = decode(total, len(codes), bounds)
        return Mean(tuple(c for c in groups[number] if c in masked), tuple(values.tolist()))

    for _, found in steps(shares, mean):
        yield found


def _of_members(
    groups: Sequence[Sequence[str]], messages: Mapping[int, R], alive: Mapping[str, Any]
) -> dict[str, R]:
    """Return client -> the message of its group, for each client that is still in it."""
    return {
        client: messages[number]
        for number, group in enumerate(groups)
        if number in messages
        for client in group
        if client in alive
    }
