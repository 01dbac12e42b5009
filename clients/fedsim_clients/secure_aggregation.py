"""The device's side of secure aggregation: four exchanges, with its secrets kept in between.

They are kept in the Flower context, on the device; see `fedsim.privacy.secure_aggregation`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from flwr.app import Context, Message, RecordDict

from fedsim.errors import FedsimError
from fedsim.privacy.secure_aggregation import device as member
from fedsim.privacy.secure_aggregation import wire
from fedsim.privacy.secure_aggregation.codes import encode
from fedsim.privacy.secure_aggregation.device import Member
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.study.release_params import given_bounds
from fedsim_clients.device import Device

_STATE = "group"
R = TypeVar("R", wire.Roster, wire.Post, wire.Survivors)


def join(message: Message, context: Context, device: Device) -> Message:
    """Join a new group: draw the secrets, answer with the public keys."""
    privacy = device.runtime.scenario.privacy
    if not privacy.chosen.grouped:
        raise FedsimError(
            f"client {device.data.key!r} refuses an invitation to a group: its scenario releases"
            f" {privacy.release!r}; give both sides the same scenario"
        )
    state, keys = member.join(device.read(wire.Invitation, message).place)
    return _answer(message, context, state, keys)


def share(message: Message, context: Context, device: Device) -> Message:
    """Share the secrets among the group, unless its threshold is below the scenario's minimum."""

    def step(state: Member, roster: wire.Roster) -> tuple[Member, wire.Envelopes]:
        min_members = device.runtime.scenario.privacy.cohort.min_members
        if roster.threshold < min_members:
            raise FedsimError(
                f"client {device.data.key!r} refuses a group of which {roster.threshold} must stay:"
                f" its scenario requires {min_members}; give both sides the same scenario"
            )
        return member.share(state, roster)

    return _take(message, context, device.read(wire.Roster, message), step)


def mask(message: Message, context: Context, device: Device) -> Message:
    """Observe the clips, and answer with the masked codes."""

    def step(state: Member, post: wire.Post) -> tuple[Member, wire.Masked]:
        bounds = given_bounds(post.low, post.high)
        if bounds is None:
            raise FedsimError(
                f"client {device.data.key!r} was sent no bounds to clip to; give both sides the"
                f" same scenario"
            )
        codes = encode(device.profile(post.measure).flat, bounds)
        return member.hide(state, wire.Envelopes(post.places, post.sealed), codes)

    return _take(message, context, device.read(wire.Post, message), step)


def unmask(message: Message, context: Context, device: Device) -> Message:
    """Answer with shares of the other members' masks, and forget all secrets."""
    return _take(message, context, device.read(wire.Survivors, message), member.unmask)


def _take(
    message: Message,
    context: Context,
    request: R,
    step: Callable[[Member, R], tuple[Member, m.Group]],
) -> Message:
    """Do one step from the state that the device kept, and keep the next state."""
    if _STATE not in context.state:
        raise FedsimError(
            "the device is not in a group: it was not invited, or lost its state; invite it again"
        )
    kept = RecordDict({"message": context.state[_STATE]})
    return _answer(message, context, *step(codec.from_record(Member, kept, "the device"), request))


def _answer(message: Message, context: Context, state: Member, answer: m.Group) -> Message:
    context.state[_STATE] = codec.to_record(state)["message"]  # type: ignore[arg-type]
    return Message(codec.to_record(answer), reply_to=message)
