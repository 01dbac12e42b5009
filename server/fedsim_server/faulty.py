"""A Grid in which declared faults happen, around the Grid of any engine.

Faults are the fleet's, not the engine's: nothing waits for a timeout here, and a client that
"crashed" leaves its worker process alone. Seconds are counted by the virtual clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.base.seeds import client_rng
from fedsim.engine.flower_internals import NO_REPLY, Run, error_reply, set_message_id
from fedsim.errors import FedsimError
from fedsim.fleet.faults import FAULTS
from fedsim.protocol import messages as m
from fedsim.scenario.schema import Scenario
from fedsim.study.faults import Fault, drawn_fault

Note = Callable[[str, str, int, str, str], None]
"""f(client, stage, attempt, event, detail): write a line about a declared fault."""


class FaultyGrid(Grid):
    """Loses, damages, repeats and delays what passes, as the scenario's `faults` say."""

    def __init__(self, grid: Any, names: Mapping[int, str], scenario: Scenario, note: Note) -> None:
        """`names`: node id -> client key, of every node."""
        self._grid, self._names, self._scenario, self._note = grid, names, scenario, note
        self._lost: dict[str, Message] = {}
        """Message id -> the error that the server is told in place of an answer."""
        self._marked: dict[str, tuple[Fault, Message]] = {}
        """Message id -> the fault that its answer will meet, and the request."""
        self._late: dict[int, list[Message]] = {}
        """Node -> answers that arrive behind its next one."""
        self._numbers = 0
        if not names.keys() >= set(grid.get_node_ids()):
            raise FedsimError(
                "faults are drawn by client, and this Grid does not tell which node is which "
                "client: leave `faults` out, or register each SuperNode under its client's key"
            )

    def set_run(self, run: Run) -> None:
        """Replace the run that the server app sees."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run that the server app sees."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return `flwr.app.Message(...)`."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> list[int]:
        """Return the id of every client."""
        return list(self._grid.get_node_ids())

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send the messages that are not lost on the way, and return the ids of all."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return answers, as far as they arrive, and errors in place of those that do not."""
        wanted = list(message_ids)
        lost = [self._lost.pop(i) for i in wanted if i in self._lost]
        if lost:  # the others may take their time
            return lost
        return [
            told for reply in self._grid.pull_messages(wanted) for told in self._received(reply)
        ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Not needed by our server app, whose messages stream; faults do not happen here."""
        return list(self._grid.send_and_receive(messages, timeout=timeout))

    def _push(self, message: Message) -> str:
        client, stage, attempt = self._place(message)
        settings = self._scenario
        fault = drawn_fault(
            settings.faults, settings.seed, client, stage, attempt, settings.retries.timeout_s
        )
        if fault is not None:
            detail = f"{fault.seconds:.1f} s" if fault.seconds else ""
            self._note(client, stage, attempt, f"declared {fault.kind}", detail)
        if fault is not None and not FAULTS[fault.kind].work_done:
            self._numbers += 1
            message_id = f"lost-{self._numbers}"
            set_message_id(message, message_id)
            reason = FAULTS[fault.kind].no_answer
            self._lost[message_id] = error_reply(message, NO_REPLY, reason)
            return message_id
        (message_id,) = self._grid.push_messages([message])
        if fault is not None:
            self._marked[message_id] = fault, message
        return str(message_id)

    def _received(self, reply: Message) -> list[Message]:
        """Return what arrives of a reply, and behind it what an earlier attempt left late."""
        node = reply.metadata.src_node_id
        late = self._late.pop(node, [])
        fault, request = self._marked.pop(reply.metadata.reply_to_message_id, (None, reply))
        if fault is None or reply.has_error():
            return [reply, *late]
        no_answer = FAULTS[fault.kind].no_answer
        if no_answer:
            if fault.kind == "late":
                self._late[node] = [reply]
            return [error_reply(request, NO_REPLY, no_answer), *late]
        if fault.kind == "duplicate":
            return [reply, reply, *late]
        if fault.kind in ("corrupt", "wrong_version"):
            client, stage, attempt = self._place(request)
            rng = client_rng(self._scenario.seed, client, f"damage-{stage}-{attempt}")
            damage = _damaged if fault.kind == "corrupt" else _of_another_version
            return [Message(damage(reply.content, rng), reply_to=request), *late]
        return [reply, *late]  # a delay within the timeout costs nothing but time

    def _place(self, message: Message) -> tuple[str, str, int]:
        """Return the client, the stage and the attempt of a request."""
        data = message.metadata
        return (
            self._names[data.dst_node_id],
            m.STAGES[data.message_type],
            int(data.group_id or 1),
        )


def _damaged(content: RecordDict, rng: np.random.Generator) -> RecordDict:
    """Return a reply as it arrives after damage: a field lost, torn, or of another kind."""
    name, record = next(iter(content.config_records.items()))
    values = dict(record)
    key = sorted(values)[int(rng.integers(len(values)))]
    damage = int(rng.integers(3))
    if damage == 0:
        del values[key]
    elif damage == 1:
        values[key] = rng.bytes(8)
    else:
        values[f"{key}?"] = values.pop(key)
    return RecordDict({name: ConfigRecord(values)})


def _of_another_version(content: RecordDict, rng: np.random.Generator) -> RecordDict:
    name, record = next(iter(content.config_records.items()))
    return RecordDict({name: ConfigRecord({**record, "protocol": m.PROTOCOL + 1})})
