"""Encodes messages as Flower records, and as text for the ledger.

Reading is strict: a missing field, an extra one, one of another type and another version of the
protocol are refused.
"""

from __future__ import annotations

import json
import types
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from fedsim.errors import FedsimError
from fedsim.protocol.messages import PROTOCOL, Candidate, Message

if TYPE_CHECKING:
    from flwr.app import RecordDict

M = TypeVar("M")
_MAIN = "message"
_VERSION = "protocol"


class VersionError(FedsimError):
    """The message is of another version of the protocol."""


def to_record(message: Message) -> RecordDict:
    """Return a message as Flower carries it: one ConfigRecord, and one per nested candidate."""
    from flwr.app import ConfigRecord, RecordDict  # a second to import

    flat, nested = _split(message)
    records = {_MAIN: ConfigRecord({_VERSION: PROTOCOL} | _values(flat))}
    for index, candidate in enumerate(nested):
        records[f"candidate.{index:06d}"] = ConfigRecord(_values(_split(candidate)[0]))
    return RecordDict(records)  # type: ignore[arg-type]


def from_record(kind: type[M], record: RecordDict, sender: str) -> M:
    """Return the message of type `kind` in a record.

    The record must have exactly the fields of the type, each of its type.

    Raises:
        VersionError: if it is of another version of the protocol; names the sender.
        FedsimError: if it is malformed; names the sender.
    """
    configs = dict(record.config_records)  # every access to the attribute copies all of them
    names = sorted(configs)
    extra = set(record) - set(names)
    candidates = [n for n in names if n.startswith("candidate.")]
    if _MAIN not in names or extra or len(names) != len(candidates) + 1:
        raise _malformed(kind, sender, f"it holds {sorted(record) or 'nothing'}")
    values: dict[str, Any] = dict(configs[_MAIN])
    version = values.pop(_VERSION, None)
    if type(version) is not int:
        raise _malformed(kind, sender, f"field {_VERSION!r} is missing")
    if version != PROTOCOL:
        raise VersionError(
            f"the message from {sender} has version {version!r:.20} of the protocol, not "
            f"{PROTOCOL}; run the same version of fedsim on both sides"
        )
    hints = _hints(kind)
    if "candidates" in hints:
        values["candidates"] = tuple(
            _build(Candidate, dict(configs[n]), sender) for n in candidates
        )
    elif candidates:
        raise _malformed(kind, sender, "it holds candidates")
    return _build(kind, values, sender)


def _malformed(kind: type, sender: str, problem: str) -> FedsimError:
    return FedsimError(
        f"the message from {sender} is not a valid {kind.__name__}: {problem}; run the same "
        f"version of fedsim on both sides"
    )


def to_text(message: Message) -> str:
    """Return a message without candidates as one line of JSON, for the ledger."""
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
    """Return the bytes of each field as it travels: 8 per number, 1 per flag, UTF-8 of a text."""
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


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(kind: type) -> dict[str, Any]:
    """Return field name -> type, cached: evaluating annotations costs more than a message."""
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]


def _build(kind: type[M], values: dict[str, Any], sender: str) -> M:
    hints = _hints(kind)
    if values.keys() != hints.keys():
        unexpected = sorted(values.keys() ^ hints.keys())
        raise _malformed(kind, sender, f"field {unexpected[0]!r:.60} is missing or unknown")
    return kind(**{k: _coerce(k, hints[k], v, kind, sender) for k, v in values.items()})


def _coerce(name: str, hint: Any, value: Any, kind: type, sender: str) -> Any:
    def refuse() -> FedsimError:
        return _malformed(kind, sender, f"field {name!r} is {value!r:.60}")

    if get_origin(hint) is tuple:
        (item, _) = get_args(hint)
        if not isinstance(value, list | tuple) or not set(map(type, value)) <= {item}:
            raise refuse()
        return tuple(value)
    if isinstance(hint, types.UnionType) or type(value) is not hint:
        raise refuse()
    return value


def value_bytes(value: Any) -> int:
    """Return the bytes of one field's value: 8 per number, 1 per flag, UTF-8 of a text."""
    if isinstance(value, tuple | list):
        if set(map(type, value)) <= {int, float}:
            return 8 * len(value)
        return sum(value_bytes(v) for v in value)
    if isinstance(value, bool):
        return 1
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else 8
