"""A member of a group: its answer to each message, and its state between two messages.

Each step takes the state of the member and returns the new one; steps come once and in order. A
device checks what protects it, and trusts the server with the rest (see the package).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from fedsim.errors import FedsimError
from fedsim.privacy.secure_aggregation.ciphers import (
    SECRET_BYTES,
    mask,
    new_secret,
    public_key,
    seal,
    seed_key,
    shared_key,
    split,
    unseal,
)
from fedsim.privacy.secure_aggregation.codes import MAX_MEMBERS
from fedsim.privacy.secure_aggregation.wire import (
    Envelopes,
    Keys,
    Masked,
    Roster,
    Shares,
    Survivors,
)

MIN_MEMBERS = 3
"""In a sum: with two, each member would learn the value of the other."""


@dataclass(frozen=True)
class Member:
    """The state of a device between two messages; it never leaves the device.

    Its fields are flat, so that a Flower context can store it. `held` are the shares that this
    member has from the members `peers`: 16 bytes of the seed of their own mask, 16 of their mask
    key.
    """

    place: int
    step: str
    seal_secret: bytes = field(default=b"", repr=False)
    mask_secret: bytes = field(default=b"", repr=False)
    seed: bytes = field(default=b"", repr=False)
    threshold: int = 0
    places: tuple[int, ...] = ()
    seal: tuple[bytes, ...] = ()
    mask: tuple[bytes, ...] = ()
    peers: tuple[int, ...] = ()
    held: tuple[bytes, ...] = field(default=(), repr=False)


def join(place: int, draw: Callable[[], bytes] = new_secret) -> tuple[Member, Keys]:
    """Return a new group's member and its public keys; `draw` gives a secret of 16 bytes."""
    member = Member(place, "share", draw(), draw(), draw())
    return member, Keys(place, public_key(member.seal_secret), public_key(member.mask_secret))


def share(member: Member, roster: Roster) -> tuple[Member, Envelopes]:
    """Return shares of the member's two secrets, sealed for each other member on the roster.

    Raises `FedsimError` for a roster that would not protect the member.
    """
    _expect(member, "share")
    n = len(roster.places)
    if (
        not MIN_MEMBERS <= n <= MAX_MEMBERS
        or not max(n / 2, MIN_MEMBERS - 1) < roster.threshold <= n
    ):
        raise _refused(
            member,
            f"a group of {n} with a threshold of {roster.threshold}; invite {MIN_MEMBERS} to"
            f" {MAX_MEMBERS} members, with a threshold of {MIN_MEMBERS} or more and of more than"
            f" half of them",
        )
    keys = dict(zip(roster.places, zip(roster.seal, roster.mask, strict=True), strict=True))
    own = public_key(member.seal_secret), public_key(member.mask_secret)
    if (
        len({key for pair in keys.values() for key in pair}) < 2 * n
        or keys.get(member.place) != own
    ):
        raise _refused(
            member, "a roster with a repeated key, or without this member's own keys; send all keys"
        )
    halves = [split(secret, roster.threshold, n) for secret in (member.seed, member.mask_secret)]
    mine = b""
    places, sealed = [], []
    for place, public, *parts in zip(roster.places, roster.seal, *halves, strict=True):
        if place == member.place:
            mine = b"".join(parts)
            continue
        key = shared_key(member.seal_secret, public, "seal")
        places.append(place)
        sealed.append(seal(key, member.place, place, b"".join(parts)))
    member = replace(
        member,
        step="mask",
        threshold=roster.threshold,
        places=roster.places,
        seal=roster.seal,
        mask=roster.mask,
        peers=(member.place,),
        held=(mine,),
    )
    return member, Envelopes(tuple(places), tuple(sealed))


def hide(member: Member, envelopes: Envelopes, codes: np.ndarray) -> tuple[Member, Masked]:
    """Return the member's codes, uint32 (L,), under its own mask and one per sender.

    y = x + m(seed) + sum over senders j of +-m(key_ij), modulo 2^32, with plus where i < j, so that
    the masks of a pair cancel. Raises `FedsimError` for too few senders, or an envelope that is not
    from them.
    """
    _expect(member, "mask")
    senders = envelopes.places
    if (
        len(set(senders)) < len(senders)
        or not set(senders) <= set(member.places) - {member.place}
        or len(senders) + 1 < member.threshold
    ):
        raise _refused(
            member,
            f"shares of {len(senders)} others; it needs {member.threshold - 1} or more, all on the"
            " roster",
        )
    seals = dict(zip(member.places, member.seal, strict=True))
    masks = dict(zip(member.places, member.mask, strict=True))
    total = codes.astype("<u4") + mask(seed_key(member.seed), len(codes))
    held = []
    for sender, sealed in zip(senders, envelopes.sealed, strict=True):
        key = shared_key(member.seal_secret, seals[sender], "seal")
        held.append(unseal(key, sender, member.place, sealed))
        pair = mask(shared_key(member.mask_secret, masks[sender], "mask"), len(codes))
        total = total + pair if member.place < sender else total - pair
    member = replace(
        member, step="unmask", peers=member.peers + senders, held=(*member.held, *held)
    )
    return member, Masked(total.astype("<u4").tobytes())


def unmask(member: Member, survivors: Survivors) -> tuple[Member, Shares]:
    """Return one share of each peer: of its own mask if it survived, else of its mask key.

    Never both, and only once: with both, the server could unmask a single member. The state that
    is returned has no secrets. Raises `FedsimError` for too few survivors, or one that is not a
    peer.
    """
    _expect(member, "unmask")
    alive = set(survivors.places)
    if (
        not {member.place} <= alive <= set(member.peers)
        or len(alive) < len(survivors.places)
        or len(alive) < member.threshold
    ):
        raise _refused(
            member,
            f"to unmask a sum of {len(alive)} members; it must be of {member.threshold} or more"
            " with which it shares masks, including itself",
        )
    shares = tuple(
        held[:SECRET_BYTES] if peer in alive else held[SECRET_BYTES:]
        for peer, held in zip(member.peers, member.held, strict=True)
    )
    return Member(member.place, "done"), Shares(member.peers, shares)


def _expect(member: Member, step: str) -> None:
    if member.step != step:
        raise _refused(member, f"the step {step!r} when {member.step!r} is expected")


def _refused(member: Member, why: str) -> FedsimError:
    return FedsimError(
        f"member {member.place} of a group refuses {why}; its summary stays on the device"
    )
