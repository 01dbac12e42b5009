"""A Flower client app that answers with what it is sent: what a message costs, without work."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    """Answer with the content."""
    return Message(message.content, reply_to=message)
