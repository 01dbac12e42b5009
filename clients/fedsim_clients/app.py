"""The Flower ClientApp: one device answers messages from its own audio.

query.sense           observe the clips, return what the scenario releases of them
query.join, .share, .mask, .unmask    the same for a group, by secure aggregation
train.personalize     calibrate the delivered models, write their files, return their sizes
evaluate.candidates   transcribe the held-out clips with each candidate, return error counts
"""

from __future__ import annotations

import transformers.modeling_utils  # noqa: F401  (every model needs it: workers import it early)
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from fedsim.base.accelerators import is_lost
from fedsim.engine.flower_internals import CLIENT_RAISED, error_reply
from fedsim.errors import DeclinedError
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim_clients import secure_aggregation
from fedsim_clients.device import Device
from fedsim_clients.identity import clips_of, device_of
from fedsim_clients.redaction import redacted_reason


def answer_mistakes(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer an error with a redacted reason that names the client, in every Flower runtime.

    Flower's own reply would wrap the reason in its exception, and quote whatever text the exception
    holds. Running out of memory is left to the runtime, and so is a GPU that is lost.
    """
    try:
        return call_next(message, context)
    except MemoryError:
        raise
    except Exception as error:
        if is_lost(error):
            raise
        code = m.DECLINED if isinstance(error, DeclinedError) else CLIENT_RAISED
        client = str(context.node_config.get("client", ""))
        reason = redacted_reason(error, client, message.metadata.message_type, clips_of(context))
        return error_reply(message, code, reason)


app = ClientApp(mods=[answer_mistakes])


@app.query("sense")
def sense(message: Message, context: Context) -> Message:
    """Observe the client's tuning clips and answer with its profile and sensitivities."""
    device = device_of(context)
    request = device.read(m.SenseRequest, message)
    return Message(codec.to_record(device.sense(request)), reply_to=message)


@app.query("join")
def join(message: Message, context: Context) -> Message:
    """Join a group of which the server learns only the mean."""
    return secure_aggregation.join(message, context, device_of(context))


@app.query("share")
def share(message: Message, context: Context) -> Message:
    """Share the secrets of the device's masks among its group."""
    return secure_aggregation.share(message, context, device_of(context))


@app.query("mask")
def mask(message: Message, context: Context) -> Message:
    """Observe the client's tuning clips and answer with its masked profile."""
    return secure_aggregation.mask(message, context, device_of(context))


@app.query("unmask")
def unmask(message: Message, context: Context) -> Message:
    """Help to remove the masks from the group's sum."""
    return secure_aggregation.unmask(message, context, device_of(context))


@app.train("personalize")
def personalize(message: Message, context: Context) -> Message:
    """Calibrate the delivered models, write their files and answer with their sizes."""
    device = device_of(context)
    delivery = device.read(m.Delivery, message)
    return Message(codec.to_record(device.personalize(delivery)), reply_to=message)


@app.evaluate("candidates")
def evaluate(message: Message, context: Context) -> Message:
    """Test the candidates on the client's held-out clips and answer with error counts."""
    device: Device = device_of(context)
    evaluation = device.read(m.Evaluation, message)
    return Message(codec.to_record(device.evaluate(evaluation)), reply_to=message)
