"""Maximum size of a message: what its type can hold for a model with a given number of layers.

A larger message is refused before it is read, so that no peer can fill another's memory or ledger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.errors import FedsimError
from fedsim.privacy.secure_aggregation import wire
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.quant.quantiles import QUANTILES
from fedsim.scenario.cells import all_cells
from fedsim.scenario.methods import EACH
from fedsim.scenario.schema import Scenario

if TYPE_CHECKING:
    from flwr.app import RecordDict

_NAMES = 4_096
"""Bytes for names of fields and clients, bit depths and single numbers."""
_NUMBER, _KEY, _SHARE, _SEALED = 8, 32, 16, 64
_CLIP = 30 * 16_000 * 2
"""Bytes of the longest public clip: 30 s in 16 bits."""
_EACH = 10_000
"""Maximum number of clients whose models one client tests: a device of a deployment does not know
how many there are."""


def max_message_bytes(
    kind: type,
    layers: int,
    *,
    models: int = 0,
    packed: int = 0,
    clips: int = 0,
    members: int = 0,
    public: int = 0,
) -> int:
    """Return the maximum bytes of a message of a type.

    Args:
        kind: type of the message.
        layers: number of layers of the model.
        models: candidates in the message, or in the request that it answers.
        packed: maximum bytes of the packed layers of one candidate.
        public: maximum bytes of public clips in the message.
        clips: test clips whose counts it holds.
        members: maximum number of members of a group.
    """
    model = layers * (2 * _NUMBER + m.HASH_BYTES + 2 * _NUMBER) + _NAMES
    bounds = 2 * layers * _NUMBER
    sizes: dict[type, int] = {
        m.SenseRequest: bounds,
        m.Summary: layers * (1 + len(QUANTILES) + 1) * _NUMBER,
        m.Delivery: models * (model + packed) + public,
        m.Evaluation: models * (model + packed) + public,
        m.Receipt: models * ((1 + 2 * layers) * _NUMBER + layers * m.HASH_BYTES),
        m.Scores: models * (13 + 2 * clips) * _NUMBER,
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

    Only config records are counted: `codec.from_record` refuses any other.
    """
    found = sum(
        len(name) + codec.value_bytes(value)
        for part in dict(record.config_records).values()
        for name, value in part.items()
    )
    if found > max_bytes:
        raise FedsimError(
            f"the message from {sender} is refused unread: it has {found:,} bytes, and a"
            f" {kind.__name__} of this scenario has at most {max_bytes:,}; give both sides the same"
            f" scenario and version of fedsim"
        )


def max_models(scenario: Scenario) -> int:
    """Return the maximum number of models that are sent to a client in one message."""
    return 1 + sum(
        method.draws
        * max(sum(1 for _ in method.ways()), 1)
        * (_EACH if EACH in method.tuned_on else max(len(method.tuned_on), 1))
        for method in scenario.methods
    )


def max_public_bytes(scenario: Scenario) -> int:
    """Return the maximum bytes of the public clips that a device blends its own with."""
    blends = any(cell.moments == "blend" for cell in all_cells(scenario))
    return scenario.quantization.public_count * _CLIP if blends else 0


def max_members(scenario: Scenario) -> int:
    """Return the maximum number of members of a group: with one more it would be two groups."""
    return 2 * scenario.privacy.cohort.size - 1
