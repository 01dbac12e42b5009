"""A Grid in which declared faults happen, around the Grid of any engine.

Faults are simulated in the messages: no code here waits for a timeout, and a client that "crashed"
does not harm its worker process. The virtual clock counts the seconds.
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

LogEvent = Callable[[str, str, int, str, str], None]
"""f(client, stage, attempt, event, detail): log a declared fault."""


class FaultyGrid(Grid):
    """Loses, damages, repeats and delays messages, as the scenario's `faults` say.

    Args:
        grid: the engine's.
        names: node id -> client key, of every node.
        scenario: declares the faults.
        log_event: logs each fault that happens.

    Raises:
        FedsimError: if `names` lacks a node, because faults are drawn by client.
    """

    def __init__(
        self, grid: Any, names: Mapping[int, str], scenario: Scenario, log_event: LogEvent
    ) -> None:
        self._grid, self._names, self._scenario = grid, names, scenario
        self._log_event = log_event
        self._lost: dict[str, Message] = {}
        """Message id -> the error that the server gets in place of an answer."""
        self._marked: dict[str, tuple[Fault, Message]] = {}
        """Message id -> the fault that will hit its answer, and the request."""
        self._late: dict[int, list[Message]] = {}
        """Node -> answers that arrive after its next one."""
        self._numbers = 0
        if not names.keys() >= set(grid.get_node_ids()):
            raise FedsimError(
                "faults are drawn by client, and this Grid does not say which client a node plays; "
                "leave `faults` out, or register each SuperNode under its client's key"
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
        """Send the messages whose request is not lost, and return the ids of all."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the answers that arrive, and errors in place of those that do not."""
        wanted = list(message_ids)
        lost = [self._lost.pop(i) for i in wanted if i in self._lost]
        if lost:  # without a wait for the others
            return lost
        replies = self._grid.pull_messages(wanted)
        return [received for reply in replies for received in self._received(reply)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Pass messages through without faults; fedsim's server app streams and never calls it."""
        return list(self._grid.send_and_receive(messages, timeout=timeout))

    def _push(self, message: Message) -> str:
        client, stage, attempt = self._place(message)
        settings = self._scenario
        fault = drawn_fault(
            settings.faults, settings.seed, client, stage, attempt, settings.retries.timeout_s
        )
        if fault is not None:
            detail = f"{fault.seconds:.1f} s" if fault.seconds else ""
            self._log_event(client, stage, attempt, f"declared {fault.kind}", detail)
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
        """Return what arrives of a reply, followed by late answers to earlier attempts."""
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
        return [reply, *late]  # a delay within the timeout costs only time

    def _place(self, message: Message) -> tuple[str, str, int]:
        """Return the client, the stage and the attempt of a request."""
        data = message.metadata
        return (
            self._names[data.dst_node_id],
            m.STAGES[data.message_type],
            int(data.group_id or 1),
        )


def _damaged(content: RecordDict, rng: np.random.Generator) -> RecordDict:
    """Return a reply as it arrives damaged: a field is missing, overwritten or renamed."""
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
