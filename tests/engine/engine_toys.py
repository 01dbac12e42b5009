"""Client apps that the engine tests run; workers import this module, so it cannot be `__main__`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.errors import AudioError

app = ClientApp()
not_an_app = "text"


def asked(message: Message) -> dict:
    return dict(message.content.config_records["ask"])


def answer(message: Message, **values: str | int | float) -> Message:
    return Message(RecordDict({"answer": ConfigRecord(values)}), reply_to=message)


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    """Everything a client is told, and a sum whose last bits depend on the torch threads."""
    seed = context.node_id % 2**32
    numbers = torch.randn(200, 200, generator=torch.Generator().manual_seed(seed))
    return answer(
        message,
        client=context.node_config["client"],
        place=context.node_config["partition-id"],
        count=context.node_config["num-partitions"],
        word=context.run_config["word"],
        norm=float((numbers @ numbers).sum()),
        value=asked(message)["value"],
    )


@app.train("count")
def count(message: Message, context: Context) -> Message:
    """Count this client's messages in its state; the tenth value asked for is an error."""
    record = context.state.metric_records.get("seen", MetricRecord({"count": 0}))
    record["count"] += 1
    context.state["seen"] = record
    if asked(message)["value"] == 10:
        raise ValueError("ten")
    return answer(message, seen=record["count"], value=asked(message)["value"])


@app.query("process")
def process(message: Message, context: Context) -> Message:
    time.sleep(asked(message)["value"])
    return answer(
        message,
        pid=os.getpid(),
        threads=torch.get_num_threads(),
        interop=torch.get_num_interop_threads(),
        omp=os.environ.get("OMP_NUM_THREADS", ""),
        start=time.monotonic() - asked(message)["value"],
        end=time.monotonic(),
    )


@app.query("machine")
def machine(message: Message, context: Context) -> Message:
    import ray

    return answer(message, raylet=ray.get_runtime_context().get_node_id())


@app.query("fail")
def fail(message: Message, context: Context) -> Message:
    raise ValueError("no\n  such thing")


@app.query("mistake")
def mistake(message: Message, context: Context) -> Message:
    raise AudioError(f"client {context.node_config['client']!r} has a silent clip: remove it")


@app.query("leave")
def leave(message: Message, context: Context) -> Message:
    raise SystemExit(3)


@app.query("nothing")
def nothing(message: Message, context: Context) -> Message:
    return None  # type: ignore[return-value]


@app.query("stray")
def stray(message: Message, context: Context) -> Message:
    reply = answer(message)
    reply.metadata.__dict__["_reply_to_message_id"] = "another"
    return reply


@app.evaluate("die_once")
def die_once(message: Message, context: Context) -> Message:
    mark = Path(str(context.run_config["folder"]), str(context.node_config["client"]))
    if asked(message)["value"] == 1 and not mark.exists():
        mark.touch()
        os._exit(1)
    return answer(message, value=asked(message)["value"])


@app.evaluate("poison")
def poison(message: Message, context: Context) -> Message:
    if asked(message)["value"] == 1:
        os._exit(1)
    return answer(message, value=asked(message)["value"])


@app.evaluate("crowd")
def crowd(message: Message, context: Context) -> Message:
    """Die of what is shared with the neighbours, and leave a mark."""
    if not context.node_config.get("alone"):
        Path(str(context.run_config["folder"]), f"died-{os.getpid()}").touch()
        os._exit(1)
    return answer(message, value=asked(message)["value"])


@app.query("gpu")
def gpu(message: Message, context: Context) -> Message:
    time.sleep(asked(message)["value"])
    return answer(message, pid=os.getpid(), visible=os.environ.get("CUDA_VISIBLE_DEVICES", ""))


@app.query("lose")
def lose(message: Message, context: Context) -> Message:
    """Fail as torch does on a GPU that fell off the bus, where a one is asked for."""
    if asked(message)["value"] == 1:
        raise RuntimeError("CUDA error: unspecified launch failure")
    return answer(message, pid=os.getpid())
