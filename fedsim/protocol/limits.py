"""How large a message may be: what its type holds for a model of so many layers, and no more.

A larger one is refused unread, so that no peer can fill another's memory or ledger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.errors import FedsimError
from fedsim.privacy.secure_aggregation import wire
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.quant.quantiles import QUANTILES
from fedsim.scenario.methods import EACH
from fedsim.scenario.schema import Scenario

if TYPE_CHECKING:
    from flwr.app import RecordDict

_NAMES = 4_096
"""Bytes for names of fields and of clients, bit depths and single numbers."""
_NUMBER, _KEY, _SHARE, _SEALED = 8, 32, 16, 64
_EACH = 10_000
"""Clients whose models one client tests at most: a device of a deployment does not know how many
there are."""


def max_message_bytes(
    kind: type, layers: int, *, models: int = 0, packed: int = 0, clips: int = 0, members: int = 0
) -> int:
    """Return the bytes that a message of a type takes at most.

    Args:
        kind: type of the message.
        layers: of the model.
        models: candidates that the message, or what it answers, is about.
        packed: bytes of the layers of one of them at most.
        clips: test clips whose counts it holds.
        members: of the sender's group.
    """
    model = layers * (_NUMBER + m.HASH_BYTES + 2 * _NUMBER) + _NAMES
    bounds = 2 * layers * _NUMBER
    sizes: dict[type, int] = {
        m.SenseRequest: bounds,
        m.Summary: layers * (1 + len(QUANTILES) + 1) * _NUMBER,
        m.Delivery: models * (model + packed),
        m.Evaluation: models * (model + packed),
        m.Receipt: models * (1 + 2 * layers) * _NUMBER,
        m.Scores: models * (8 + 2 * clips) * _NUMBER,
        wire.Invitation: 0,
        wire.Keys: 2 * _KEY,
        wire.Roster: members * (_NUMBER + 2 * _KEY),
        wire.Envelopes: members * (_NUMBER + _SEALED),
        wire.Post: members * (_NUMBER + _SEALED) + bounds,
        wire.Masked: layers * _NUMBER,
        wire.Survivors: members * _NUMBER,
        wire.Shares: members * (_NUMBER + _SHARE),
    }
    return sizes[kind] + _NAMES


def check_size(kind: type, record: RecordDict, max_bytes: int, sender: str) -> None:
    """Raise `FedsimError`, which names the sender, for a record of more than `max_bytes` bytes.

    Only what `messages.from_record` reads is counted; records of another kind it refuses itself.
    """
    found = sum(
        len(name) + codec.value_bytes(value)
        for part in dict(record.config_records).values()
        for name, value in part.items()
    )
    if found > max_bytes:
        raise FedsimError(
            f"the message from {sender} is refused unread: it has {found:,} bytes, and a"
            f" {kind.__name__} of this scenario at most {max_bytes:,}"
        )


def max_models(scenario: Scenario) -> int:
    """Return how many models a client is sent at most."""
    return 1 + sum(
        method.draws
        * max(len(method.calibration), 1)
        * (_EACH if EACH in method.tuned_on else max(len(method.tuned_on), 1))
        for method in scenario.methods
    )


def max_members(scenario: Scenario) -> int:
    """Return how many members a group has at most: one fewer would be enough for two groups."""
    return 2 * scenario.privacy.cohort.size - 1
