"""The typed messages: the only types that clients and server share.

Each is a frozen dataclass of numbers, names and bit depths: there is no field in which audio, text
or an activation could travel. `to_record` and `from_record` carry them in Flower's RecordDict;
anything missing, extra or of another type is refused, and so is a message of another version of
this protocol.
"""

from __future__ import annotations

import json
import types
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from fedsim.errors import FedsimError
from fedsim.privacy.cohort import wire

if TYPE_CHECKING:
    from flwr.app import RecordDict

SENSE = "query.sense"
PERSONALIZE = "train.personalize"
EVALUATE = "evaluate.candidates"
JOIN, SHARE, MASK, UNMASK = "query.join", "query.share", "query.mask", "query.unmask"
"""The four exchanges of secure aggregation (`fedsim.privacy.cohort.wire`)."""
STAGES = {
    SENSE: "sense",
    JOIN: "join",
    SHARE: "share",
    MASK: "mask",
    UNMASK: "unmask",
    PERSONALIZE: "personalize",
    EVALUATE: "evaluate",
}
"""Message type -> what a ledger and a scenario call the stage."""

DECLINED = 1_001
"""Code of the reply of a device that has spent its privacy budget; Flower's own are below 1,000."""

HASH_BYTES = 32
"""Of a SHA-256, by which packed layers are called."""
PROTOCOL = 1
"""Version of the messages; client and server must speak the same."""

_HINTS: dict[type, dict[str, Any]] = {}
_MAIN = "message"
_VERSION = "protocol"


class VersionError(FedsimError):
    """A message of another version of the protocol."""


@dataclass(frozen=True)
class SenseRequest:
    """Server to client: observe your clips. An empty `measure` asks for the profile alone.

    `quantiles` asks for the distribution of each layer's output too: set only by a scenario that
    says `study: true`, and written in the ledger as a release. So is `workload`, set only by a
    scenario with a fleet: how much audio there is, for its virtual clock.

    `round` counts the releases of one device, from 1; `low` and `high` are the public bounds of
    each layer, where the scenario's release reads them. What is released is the device's own
    scenario's choice, and no server's.
    """

    measure: str
    quantiles: bool = False
    workload: bool = False
    round: int = 1
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Summary:
    """Client to server: the device's profile and, per layer, one sensitivity.

    `budget_bytes` is the room for a model file, `bit_depths` what the runtime executes, `clips` how
    many clips were observed, `sensitivity` one value a layer (empty when none was asked for).
    `quantiles` are those of every layer's output one after the other, `workload` the seconds of
    audio and the tokens of the model's own transcripts, when the server asked. Where the scenario
    releases something else than values, `sensitivity` is empty and `payload` holds what is
    released, to the byte (`fedsim.privacy.releases`).
    """

    client: str
    budget_bytes: int
    bit_depths: tuple[int, ...]
    clips: int
    sensitivity: tuple[float, ...]
    quantiles: tuple[float, ...] = ()
    workload: tuple[float, ...] = ()
    payload: bytes = b""


@dataclass(frozen=True)
class Candidate:
    """A mixed-precision model: bit depth per layer, and where its packed layers are.

    `blobs` are 32 bytes per layer, the SHA-256 of its packed form. `ranges` are activation ranges,
    low and high per layer, NaN where a layer has none; empty means that the device calibrates on
    its own clips. `name` tells candidates of one client apart.
    """

    name: str
    calibration: str
    tuned_on: str
    bits: tuple[int, ...]
    blobs: bytes
    ranges: tuple[float, ...] = ()

    def blob(self, layer: int) -> str:
        """Return the name of a layer's packed form in a bank: its SHA-256, in hex."""
        return self.blobs[layer * HASH_BYTES : (layer + 1) * HASH_BYTES].hex()


@dataclass(frozen=True)
class Delivery:
    """Server to client: your models.

    `return_ranges` asks for the activation ranges of each candidate: set only by a study that tests
    one client's model on another, and written in the ledger as a release. `layers` are packed
    layers, each told by its hash, that the device was not sent before; none where devices read them
    from the server's bank.
    """

    return_ranges: bool
    candidates: tuple[Candidate, ...]
    layers: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Receipt:
    """Client to server: exact bytes of each candidate's model file, in the order delivered.

    `ranges` are those of every candidate one after the other, when the delivery asked for them.
    """

    client: str
    file_bytes: tuple[int, ...]
    ranges: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """Server to client: test these candidates on your held-out clips, and full precision if
    asked.

    `clip_counts` asks for the counts of each clip as well: set only by a scenario that says
    `study: true`, and written in the ledger as a release; `workload` as in `SenseRequest`, `layers`
    as in `Delivery`.
    """

    full_precision: bool
    candidates: tuple[Candidate, ...]
    clip_counts: bool = False
    workload: bool = False
    layers: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Scores:
    """Client to server: error counts, summed over the client's test clips.

    One value per candidate, in the order asked for, full precision first. A recognizer fills
    errors, words, char_errors, chars; a classifier fills correct; the others are empty.
    `file_bytes` are those of the candidate's model file (full precision: its float32 weights).
    `low` and `high` bound a 95 % interval of the word error rate or accuracy, which the device
    computes itself: no count of a single clip leaves it, unless the server asked for them:
    `clip_wrong` and `clip_of` are then those of every candidate one after the other, word errors
    and words of each clip, or 0 or 1 and 1 of a classifier. `workload` is the seconds of audio, if
    asked for.
    """

    client: str
    clips: int
    file_bytes: tuple[int, ...]
    errors: tuple[int, ...]
    words: tuple[int, ...]
    char_errors: tuple[int, ...]
    chars: tuple[int, ...]
    correct: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    clip_wrong: tuple[int, ...] = ()
    clip_of: tuple[int, ...] = ()
    workload: tuple[float, ...] = ()


Group = (
    wire.Invitation
    | wire.Keys
    | wire.Roster
    | wire.Envelopes
    | wire.Post
    | wire.Masked
    | wire.Survivors
    | wire.Shares
)
"""What members of a group and the server send each other."""
Message = SenseRequest | Summary | Delivery | Receipt | Evaluation | Scores | Group
M = TypeVar("M")


def to_record(message: Message) -> RecordDict:
    """Return a message as Flower carries it: one ConfigRecord, and one per nested candidate."""
    from flwr.app import ConfigRecord, RecordDict

    flat, nested = _split(message)
    records = {_MAIN: ConfigRecord({_VERSION: PROTOCOL} | _values(flat))}
    for index, candidate in enumerate(nested):
        records[f"candidate.{index:06d}"] = ConfigRecord(_values(_split(candidate)[0]))
    return RecordDict(records)  # type: ignore[arg-type]


def from_record(kind: type[M], record: RecordDict, sender: str) -> M:
    """Return the message of type `kind` in a record.

    The check is strict: exactly the fields of the type, each of its type.

    Raises:
        VersionError: if it is of another version of the protocol; names the sender.
        FedsimError: if it is malformed; names the sender.
    """
    configs = dict(record.config_records)  # each look at the attribute copies all of them
    names = sorted(configs)
    extra = set(record) - set(names)
    candidates = [n for n in names if n.startswith("candidate.")]
    if _MAIN not in names or extra or len(names) != len(candidates) + 1:
        raise FedsimError(
            f"the message from {sender} is no {kind.__name__}: it holds "
            f"{sorted(record) or 'nothing'}"
        )
    values: dict[str, Any] = dict(configs[_MAIN])
    version = values.pop(_VERSION, None)
    if type(version) is not int:
        raise FedsimError(
            f"the message from {sender} is no {kind.__name__}: field {_VERSION!r} is missing"
        )
    if version != PROTOCOL:
        raise VersionError(
            f"the message from {sender} is of version {version!r:.20} of the protocol, and "
            f"{PROTOCOL} is understood here: run the same version of fedsim on both sides"
        )
    hints = _hints(kind)
    if "candidates" in hints:
        values["candidates"] = tuple(
            _build(Candidate, dict(configs[n]), sender) for n in candidates
        )
    elif candidates:
        raise FedsimError(f"the message from {sender} is no {kind.__name__}: it holds candidates")
    return _build(kind, values, sender)


def to_text(message: Message) -> str:
    """Return a message without candidates as one line of JSON, for the ledger to keep."""
    return json.dumps(asdict(message), default=bytes.hex)


def from_text(kind: type[M], text: str) -> M:
    """Return the message of type `kind` that `to_text` wrote."""
    hints = _hints(kind)

    def read(value: Any, hint: Any) -> Any:
        if hint is bytes:
            return bytes.fromhex(value)
        return tuple(value) if isinstance(value, list) else value

    return kind(**{k: read(v, hints[k]) for k, v in json.loads(text).items()})


def field_bytes(message: Message) -> dict[str, int]:
    """Return the bytes of each field as it travels: 8 a number, 1 a flag, UTF-8 a text."""
    flat, nested = _split(message)
    sizes = {name: value_bytes(value) for name, value in flat.items()}
    if hasattr(message, "candidates"):
        sizes["candidates"] = sum(
            value_bytes(v) for candidate in nested for v in _split(candidate)[0].values()
        )
    return sizes


def _split(message: Any) -> tuple[dict[str, Any], tuple[Candidate, ...]]:
    values = {f.name: getattr(message, f.name) for f in fields(message)}
    return values, values.pop("candidates", ())


def _values(flat: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()}


def _hints(kind: type) -> dict[str, Any]:
    """Return field name -> type; once, for evaluating the annotations costs more than a message."""
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]


def _build(kind: type[M], values: dict[str, Any], sender: str) -> M:
    hints = _hints(kind)
    if values.keys() != hints.keys():
        odd = sorted(values.keys() ^ hints.keys())
        raise FedsimError(
            f"the message from {sender} is no {kind.__name__}: field {odd[0]!r} is missing or "
            f"unknown"
        )
    return kind(**{k: _coerce(k, hints[k], v, kind, sender) for k, v in values.items()})


def _coerce(name: str, hint: Any, value: Any, kind: type, sender: str) -> Any:
    def refuse() -> FedsimError:
        return FedsimError(
            f"the message from {sender} is no {kind.__name__}: field {name!r} is {value!r:.60}"
        )

    if get_origin(hint) is tuple:
        (item, _) = get_args(hint)
        if not isinstance(value, list | tuple) or not set(map(type, value)) <= {item}:
            raise refuse()
        return tuple(value)
    if isinstance(hint, types.UnionType) or type(value) is not hint:
        raise refuse()
    return value


def value_bytes(value: Any) -> int:
    """Return the bytes of one field's value: 8 a number, 1 a flag, UTF-8 a text."""
    if isinstance(value, tuple | list):
        if set(map(type, value)) <= {int, float}:
            return 8 * len(value)
        return sum(value_bytes(v) for v in value)
    if isinstance(value, bool):
        return 1
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else 8
