"""What passes between the server and a member, in flat fields (`fedsim.protocol.codec`).

A member is known by its place in the group, a number from 1. Where a message is about several, its
tuples have one entry a member, in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Invitation:
    """Server to member: take this place in a new group."""

    place: int


@dataclass(frozen=True)
class Keys:
    """Member to server: the public keys of its envelopes and of its masks (X25519, 32 bytes)."""

    place: int
    seal: bytes
    mask: bytes


@dataclass(frozen=True)
class Roster:
    """Server to members: who is in the group, and how many must stay to the end."""

    threshold: int
    places: tuple[int, ...]
    seal: tuple[bytes, ...]
    mask: tuple[bytes, ...]


@dataclass(frozen=True)
class Envelopes:
    """Member to server: shares sealed for each of `places`; to a member, in a post, those from
    each."""

    places: tuple[int, ...]
    sealed: tuple[bytes, ...]


@dataclass(frozen=True)
class Post:
    """Server to member: `sealed` as in `Envelopes`; observe your clips by `measure`, clip to the
    public bounds `low` and `high` of each layer, and send your codes under your masks."""

    measure: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    places: tuple[int, ...]
    sealed: tuple[bytes, ...]


@dataclass(frozen=True)
class Masked:
    """Member to server: its codes under all its masks, uint32 (L,) little-endian."""

    codes: bytes


@dataclass(frozen=True)
class Survivors:
    """Server to members: whose masked codes came."""

    places: tuple[int, ...]


@dataclass(frozen=True)
class Shares:
    """Member to server: its share (16 bytes) of one secret of each of `places`: of the own mask of
    a survivor, of the mask key of a member that fell out."""

    places: tuple[int, ...]
    shares: tuple[bytes, ...]
