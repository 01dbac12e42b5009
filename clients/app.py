"""The Flower ClientApp: three messages, answered by one device from its own audio.

query.sense           observe the clips, return the release: one number a layer
train.personalize     calibrate the delivered models, write their files, return their sizes
evaluate.candidates   transcribe the held-out clips with each candidate, return error counts
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from clients.device import Device
from clients.node import device_of
from fedsim import messages as m
from fedsim.engine.flower_internals import CLIENT_RAISED, error_reply
from fedsim.errors import DeclinedError, FedsimError


def answer_mistakes(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer a mistake with its sentence, which names the client, whatever runtime this is.

    Flower's own would answer with the sentence in the wrapping of its exception.
    """
    try:
        return call_next(message, context)
    except FedsimError as error:
        text, key = str(error), context.node_config.get("client")
        if key is not None and repr(str(key)) not in text:
            text = f"client {str(key)!r}: {text}"
        code = m.DECLINED if isinstance(error, DeclinedError) else CLIENT_RAISED
        return error_reply(message, code, text)


app = ClientApp(mods=[answer_mistakes])


@app.query("sense")
def sense(message: Message, context: Context) -> Message:
    """Observe the client's tuning clips and answer with its profile and sensitivities."""
    device = device_of(context)
    request = m.from_record(m.SenseRequest, message.content, "the server")
    return Message(m.to_record(device.sense(request)), reply_to=message)


@app.train("personalize")
def personalize(message: Message, context: Context) -> Message:
    """Calibrate the delivered models, write their files and answer with their sizes."""
    device = device_of(context)
    delivery = m.from_record(m.Delivery, message.content, "the server")
    return Message(m.to_record(device.personalize(delivery)), reply_to=message)


@app.evaluate("candidates")
def evaluate(message: Message, context: Context) -> Message:
    """Test the candidates on the client's held-out clips and answer with error counts."""
    device: Device = device_of(context)
    evaluation = m.from_record(m.Evaluation, message.content, "the server")
    return Message(m.to_record(device.evaluate(evaluation)), reply_to=message)
