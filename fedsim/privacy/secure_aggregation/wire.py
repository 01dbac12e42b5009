"""Messages between the server and a member, in flat fields (`fedsim.protocol.codec`).

A member is identified by its place in the group, a number from 1. In a message about several
members, the tuples have one entry per member, in the same order.
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
    """Server to members: the members of the group, and how many must stay to the end."""

    threshold: int
    places: tuple[int, ...]
    seal: tuple[bytes, ...]
    mask: tuple[bytes, ...]


@dataclass(frozen=True)
class Envelopes:
    """Member to server: shares sealed for each of `places`. Server to member: shares from each."""

    places: tuple[int, ...]
    sealed: tuple[bytes, ...]


@dataclass(frozen=True)
class Post:
    """Server to member: shares as in `Envelopes`, and the request for masked codes.

    The member observes its clips by `measure`, and clips the values to the public bounds `low` and
    `high` of each layer.
    """

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
    """Server to members: the members whose masked codes arrived."""

    places: tuple[int, ...]


@dataclass(frozen=True)
class Shares:
    """Member to server: its share (16 bytes) of one secret of each of `places`.

    Of a survivor the secret is the seed of its own mask, of a member that dropped out its mask key.
    """

    places: tuple[int, ...]
    shares: tuple[bytes, ...]
