"""The in-process engine under a name of a test's own, with what the test puts around it.

A Grid around the real one sees or changes every message that passes; Flower's mods in the client
app see or change what one client does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedsim.engine import ENGINES, Engine
from fedsim.engine.flower_internals import (
    NO_REPLY,
    error_reply,
    server_identity,
    set_message_id,
)
from fedsim.engine.inprocess import InProcessGrid
from fedsim.engine.nodes import nodes_of
from fedsim.engine.settings import torch_threads
from fedsim.engine.worker import load_app
from fedsim.protocol import codec
from fedsim.protocol import messages as m

NAME = "own"


@dataclass
class OwnEngine:
    """What the engine called `own` does; a test may change it between two runs."""

    wrap: Callable[[Grid], Grid] = lambda grid: grid
    """What the server gets of the real Grid."""
    mods: Sequence[Any] = ()
    """Flower's mods between the client app's redaction and its answers."""
    opened: list[tuple[list[str], dict[str, Any]]] = field(default_factory=list)
    """The clients and the run config of each Grid that was opened."""

    @contextmanager
    def open(self, app, clients, run_config, settings) -> Iterator[Grid]:
        self.opened.append((list(clients), dict(run_config)))
        chosen = client_app(*self.mods) if self.mods else load_app(app)
        with torch_threads(settings.threads), server_identity():
            yield self.wrap(InProcessGrid(chosen, nodes_of(clients), run_config))


@contextmanager
def own_engine() -> Iterator[OwnEngine]:
    """Have an engine called `own` in the registry while open."""
    made = OwnEngine()
    ENGINES.add(NAME, Engine(made.open, summary="In this process, as a test wants it."))
    try:
        yield made
    finally:
        del ENGINES._entries[NAME]


def client_app(*mods: Any) -> ClientApp:
    """The client app with mods of a test's own: an error in them is redacted as any other."""
    from fedsim_clients import app as ours

    app = ClientApp(mods=[ours.answer_mistakes, *mods])
    for name in ("sense", "join", "share", "mask", "unmask"):
        app.query(name)(getattr(ours, name))
    app.train("personalize")(ours.personalize)
    app.evaluate("candidates")(ours.evaluate)
    return app


def raising(client: str, kind: str, error: BaseException) -> Any:
    """A mod that raises in place of one client's answer to messages of a type."""

    def mod(message, context, call_next):
        if (context.node_config["client"], message.metadata.message_type) == (client, kind):
            raise error
        return call_next(message, context)

    return mod


def answering(client: str, kind: str, reply: type, change: Callable[[Any], Any]) -> Any:
    """A mod that sends `change(answer)` in place of one client's answer to messages of a type."""

    def mod(message, context, call_next):
        answer = call_next(message, context)
        if (context.node_config["client"], message.metadata.message_type) == (client, kind):
            changed = change(codec.from_record(reply, answer.content, client))
            return Message(codec.to_record(changed), reply_to=message)
        return answer

    return mod


class PassingGrid(Grid):
    """Passes everything on to another Grid; a subclass sees or changes what passes."""

    def __init__(self, grid: Any) -> None:
        self.grid = grid
        self.names = {node.node_id: node.name for node in grid.get_nodes()}

    def set_run(self, run) -> None:
        self.grid.set_run(run)

    @property
    def run(self):
        return self.grid.run

    def create_message(self, *args, **kwargs) -> Message:
        return self.grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> list[int]:
        return self.grid.get_node_ids()

    def get_nodes(self):
        return self.grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self.push(message) for message in messages]

    def push(self, message: Message) -> str:
        (message_id,) = self.grid.push_messages([message])
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return self.grid.pull_messages(message_ids)

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


class LosingGrid(PassingGrid):
    """Loses the answers of some clients: stage -> clients, as the ledger calls the stage."""

    def __init__(self, grid: Any, **clients: Sequence[str]) -> None:
        super().__init__(grid)
        self.clients = clients
        self.lost: dict[str, Message] = {}

    def push(self, message: Message) -> str:
        client = self.names[message.metadata.dst_node_id]
        if client not in self.clients.get(m.STAGES[message.metadata.message_type], ()):
            return super().push(message)
        message_id = f"lost-{len(self.lost)}-{client}"
        set_message_id(message, message_id)
        self.lost[message_id] = error_reply(message, NO_REPLY, "it is gone")
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = list(message_ids)
        gone = [self.lost[message_id] for message_id in wanted if message_id in self.lost]
        return gone or super().pull_messages(wanted)


class RefusingGrid(PassingGrid):
    """Fails the test as soon as a client is sent anything."""

    def push(self, message: Message) -> str:
        client = self.names[message.metadata.dst_node_id]
        raise AssertionError(f"{client} was asked again")


def changed(message: Message, content: RecordDict) -> Message:
    """The request with another content."""
    data = message.metadata
    return Message(
        content,
        dst_node_id=data.dst_node_id,
        message_type=data.message_type,
        group_id=data.group_id,
    )
