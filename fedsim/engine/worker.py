"""What happens to one message at one client, the same in every engine."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsim.base.accelerators import is_lost
from fedsim.engine.flower_internals import (
    CLIENT_CRASHED,
    CLIENT_RAISED,
    NO_REPLY,
    error_reply,
    new_context,
    pack,
    pack_state,
    unpack,
)
from fedsim.engine.nodes import Node
from fedsim.errors import FedsimError

DEATHS = 3
"""A message that was lost with this many worker processes is given up."""


def load_app(reference: str) -> ClientApp:
    """Import the ClientApp that "module:attribute" names; `FedsimError` if it cannot be had."""
    module, colon, attribute = reference.partition(":")
    if not (module and colon and attribute):
        raise FedsimError(f"client app {reference!r}: write it as 'package.module:attribute'")
    try:
        app = getattr(import_module(module), attribute)
    except Exception as error:
        raise FedsimError(
            f"client app {reference!r} cannot be imported: {type(error).__name__}: {error}; "
            "install what is missing, or start fedsim where the module can be found"
        ) from error
    if not isinstance(app, ClientApp):
        raise FedsimError(f"client app {reference!r} is a {type(app).__name__}, not a ClientApp")
    return app


def handle(app: ClientApp, message: Message, context: Context) -> Message:
    """Return the client's reply to `message`; a client that fails replies with an error.

    The reason is one line: the text of a `FedsimError` as it is, any other exception with the
    client's key and the message type. Out of memory counts as no answer, so that the server tries
    again: another time there may be room. One client's failure never ends a run. The loss of a GPU
    is raised: this process can compute nothing any more.
    """
    client = context.node_config["client"]
    where = f"client {client!r} failed in {message.metadata.message_type}"
    try:
        reply = app(message, context)
    except FedsimError as error:
        return error_reply(message, CLIENT_RAISED, str(error))
    except MemoryError:
        return error_reply(message, NO_REPLY, f"{where}: it ran out of memory")
    except (Exception, SystemExit) as error:
        if is_lost(error):
            raise
        return error_reply(message, CLIENT_RAISED, f"{where}: {type(error).__name__}: {error}")
    if not isinstance(reply, Message):
        return error_reply(
            message, CLIENT_RAISED, f"{where}: it returned {type(reply).__name__}, not a Message"
        )
    if reply.metadata.reply_to_message_id != message.metadata.message_id:
        return error_reply(
            message, CLIENT_RAISED, f"{where}: its message is no reply; pass reply_to=message"
        )
    return reply


def exchange(
    app: ClientApp,
    node: Node,
    run_config: Mapping[str, str | int | float | bool],
    request: bytes,
    state: bytes,
) -> tuple[bytes, bytes]:
    """Run one client on a serialized request; return its serialized reply and its new state.

    A client that replies with an error keeps the state it had, so that a second try finds what
    the first one found.
    """
    context = new_context(node, run_config, state)
    reply = handle(app, unpack(request), context)
    return pack(reply), state if reply.has_error() else pack_state(context.state)


def died(message: Message, client: str) -> Message:
    """Return the error reply in place of a client's that took its worker process with it."""
    reason = (
        f"client {client!r}: its worker process died {DEATHS} times while it ran (out of memory?); "
        "give it fewer clips or fewer --workers"
    )
    return error_reply(message, CLIENT_CRASHED, reason)
