"""The server's part: it routes messages between members, and removes the masks from the sum.

It has no state: each step is a function of what the members sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fedsim.errors import FedsimError
from fedsim.privacy.secure_aggregation.ciphers import (
    KEY_BYTES,
    SEALED_BYTES,
    SECRET_BYTES,
    combine,
    mask,
    public_key,
    seed_key,
    shared_key,
)
from fedsim.privacy.secure_aggregation.wire import (
    Envelopes,
    Keys,
    Masked,
    Roster,
    Shares,
    Survivors,
)


def min_threshold(members: int) -> int:
    """Return the minimum threshold that members accept: more than half of them, 3 or more."""
    return max(members // 2 + 1, 3)


def problem_in_keys(keys: Keys, place: int) -> str:
    """Return what is wrong with the keys of the member at `place`, as words after "sent"; or ""."""
    if keys.place != place:
        return f"the keys of member {keys.place}, and it is member {place}"
    for key in (keys.seal, keys.mask):
        if len(key) != KEY_BYTES:
            return f"a key of {len(key)} bytes instead of {KEY_BYTES}"
        try:
            shared_key(bytes(SECRET_BYTES), key, "trial")
        except FedsimError as error:
            return f"a key that other members cannot use: {error}"
    return "one key twice" if keys.seal == keys.mask else ""


def problem_in_envelopes(sent: Envelopes, place: int, group: Roster) -> str:
    """Return what is wrong with the envelopes of the member at `place`, or ""."""
    others = sorted(set(group.places) - {place})
    return _problem_in_parts(sent.places, sent.sealed, others, SEALED_BYTES, "sealed shares")


def problem_in_shares(sent: Shares, sharers: Iterable[int]) -> str:
    """Return what is wrong with the shares that a member sends at the end, or ""."""
    return _problem_in_parts(sent.places, sent.shares, sorted(sharers), SECRET_BYTES, "shares")


def _problem_in_parts(
    places: Sequence[int], parts: Sequence[bytes], expected: list[int], size: int, what: str
) -> str:
    if sorted(places) != expected or len(parts) != len(expected):
        return (
            f"{len(parts)} {what} for {len(places)} members instead of one for each of the"
            f" {len(expected)} expected"
        )
    wrong = next((len(part) for part in parts if len(part) != size), None)
    return "" if wrong is None else f"{what} of {wrong} bytes instead of {size}"


def roster(keys: Iterable[Keys], threshold: int) -> Roster:
    """Return the group of all members whose keys arrived.

    Raises `FedsimError` if they are fewer than the threshold.
    """
    found = sorted(keys, key=lambda k: k.place)
    _check_enough(len(found), threshold, "sent their keys")
    return Roster(
        threshold,
        tuple(k.place for k in found),
        tuple(k.seal for k in found),
        tuple(k.mask for k in found),
    )


def route(sent: Mapping[int, Envelopes], group: Roster) -> dict[int, Envelopes]:
    """Return the envelopes for each sender: those that the other senders sealed for it.

    Raises `FedsimError` if there are fewer senders than the threshold, or one sent wrong envelopes.
    """
    _check_enough(len(sent), group.threshold, "sent their shares")
    for place, envelopes in sent.items():
        problem = problem_in_envelopes(envelopes, place, group)
        if problem:
            raise FedsimError(f"member {place} of a group sent {problem}; leave it out")
    post = {place: dict(zip(e.places, e.sealed, strict=True)) for place, e in sent.items()}
    return {
        receiver: Envelopes(
            tuple(sender for sender in sorted(post) if sender != receiver),
            tuple(post[sender][receiver] for sender in sorted(post) if sender != receiver),
        )
        for receiver in sorted(post)
    }


def survivors(masked: Mapping[int, Masked], group: Roster) -> Survivors:
    """Return the members whose codes arrived; `FedsimError` if fewer than the threshold."""
    _check_enough(len(masked), group.threshold, "sent their codes")
    return Survivors(tuple(sorted(masked)))


def total(
    group: Roster,
    sharers: Iterable[int],
    masked: Mapping[int, Masked],
    shares: Mapping[int, Shares],
) -> np.ndarray:
    """Return the sum of the survivors' codes, uint32 (L,), modulo 2^32.

    The own mask of a survivor is removed by its seed. A member that shared and then dropped out
    left a mask with each survivor in the sum: these are removed by its key.

    Args:
        group: the roster that was sent to all.
        sharers: the members that sent shares, whose masks are in the codes.
        masked: the codes of each survivor.
        shares: those of each member that answered at the end.

    Raises:
        FedsimError: if there are fewer answers than the threshold, codes differ in length, or
            shares do not match the keys.
    """
    _check_enough(len(shares), group.threshold, "sent shares of the masks")
    sharers = set(sharers)
    for holder, found in shares.items():
        problem = problem_in_shares(found, sharers)
        if problem:
            raise FedsimError(f"member {holder} of a group sent {problem}; leave it out")
    lengths = {len(m.codes) for m in masked.values()}
    if len(lengths) != 1 or max(lengths) % 4:
        raise FedsimError(
            f"the masked codes of a group have {sorted(lengths)} bytes and not one length; ask its"
            " members again"
        )
    result = np.zeros(max(lengths) // 4, np.uint32)
    for codes in masked.values():
        result += np.frombuffer(codes.codes, "<u4")
    numbers = {place: i + 1 for i, place in enumerate(group.places)}
    public = dict(zip(group.places, group.mask, strict=True))
    parts = {
        numbers[holder]: dict(zip(found.places, found.shares, strict=True))
        for holder, found in sorted(shares.items())[: group.threshold]
    }
    for place in sharers:
        secret = combine([(number, part[place]) for number, part in parts.items()])
        if place in masked:
            result -= mask(seed_key(secret), len(result))
            continue
        if public_key(secret) != public[place]:
            raise FedsimError(
                f"the shares of member {place}, which dropped out, do not give its key, so a member"
                " sent a wrong share; start a new group"
            )
        for other in masked:
            pair = mask(shared_key(secret, public[other], "mask"), len(result))
            # The member with the smaller place of a pair has added the mask.
            result += pair if place < other else -pair
    return result


def _check_enough(found: int, threshold: int, did: str) -> None:
    if found < threshold:
        raise FedsimError(
            f"{found} members of a group {did}, and its threshold is {threshold}, so no sum can be"
            " computed; ask a larger group, or the same again"
        )
