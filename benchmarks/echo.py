"""A Flower client app that returns what it is sent, to measure the cost of a message."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    """Answer with the content."""
    return Message(message.content, reply_to=message)
