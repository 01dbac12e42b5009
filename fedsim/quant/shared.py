"""Forward passes that the clips of several clients share, with statistics kept apart.

A GPU that four short clips leave idle gains from more clips in a batch; a processor does not. Only
batches of equal shape are joined: each client's clips are grouped and padded as they would be
alone, so that only the number of rows in the network's products differs. That may change last
digits.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch

from fedsim.quant.calibrators import Needs
from fedsim.quant.model import Batch, Quantizable
from fedsim.quant.moments import MomentRecorder, recording
from fedsim.quant.observe import Recorder, observing
from fedsim.quant.onepass import NOTHING, Passed
from fedsim.quant.output_recorder import OutputRecorder
from fedsim.quant.sensitivity import Sensed, Sensing


@dataclass(frozen=True, eq=False)
class SharedBatch:
    """A batch of several clients: `batch` has all clips, `parts` each client (its place among the
    clients) with what is its own of the batch."""

    batch: Batch
    parts: tuple[tuple[int, Batch], ...]


def shared_batches(clients: Sequence[Iterable[Batch]]) -> Iterator[SharedBatch]:
    """Yield the batches of several clients, those of equal shape and language as one.

    The n-th batches of all clients are looked at together, and each client's come in their order.
    A stream: one batch of each client exists at a time.
    """
    for row in zip_longest(*clients):
        alike: dict[Hashable, list[tuple[int, Batch]]] = {}
        for client, batch in enumerate(row):
            if batch is not None:
                alike.setdefault(_shape(batch), []).append((client, batch))
        yield from map(_together, alike.values())


def shared_pass(
    model: Quantizable,
    clients: Sequence[Iterable[Batch]],
    sensing: Sensing,
    wanted: Needs = NOTHING,
    *,
    moments: bool = False,
) -> list[Passed[Sensed]]:
    """Return for each client what `quant.onepass.one_pass` would return for its batches.

    Args:
        model: in full precision.
        clients: of each client, the batches of its tuning clips.
        sensing: what is sensed.
        wanted: what the calibrations that will follow need.
        moments: whether second moments of the layers' inputs are wanted.

    Raises:
        FedsimError: where anything is wrong with one client's clips, as `one_pass` does.
    """
    with ExitStack() as open_hooks, torch.inference_mode():
        recorders = [_recorders(open_hooks, model, sensing, wanted, moments) for _ in clients]
        for shared in shared_batches(clients):
            for client, part in shared.parts:
                recorders[client].start(part)
            model.forward(shared.batch)
            for client, _ in shared.parts:
                recorders[client].stop()
    return [one.passed(model, sensing) for one in recorders]


@dataclass(frozen=True)
class _Recorders:
    """What records one client's part of a pass."""

    outputs: OutputRecorder | None
    observer: Recorder | None
    moments: MomentRecorder | None

    def start(self, batch: Batch) -> None:
        for one in (self.outputs, self.observer, self.moments):
            if one is not None:
                one.start(batch)

    def stop(self) -> None:
        for one in (self.outputs, self.observer, self.moments):
            if one is not None:
                one.stop()

    def passed(self, model: Quantizable, sensing: Sensing) -> Passed[Sensed]:
        return Passed(
            Sensed() if self.outputs is None else sensing.result(model, self.outputs),
            None if self.observer is None else self.observer.observations(),
            None if self.moments is None else self.moments.moments(),
        )


def _recorders(
    hooks: ExitStack, model: Quantizable, sensing: Sensing, wanted: Needs, moments: bool
) -> _Recorders:
    ranges = wanted.ranges and not wanted.fisher
    outputs, recorder = None, None
    if sensing != Sensing():
        outputs = hooks.enter_context(sensing.recorder(model))
    observer = hooks.enter_context(observing(model, rows=wanted.rows)) if ranges else None
    if moments:
        recorder = hooks.enter_context(recording(model))
    return _Recorders(outputs, observer, recorder)


def _shape(batch: Batch) -> Hashable:
    """Return what batches must have in common to share a pass: all but the number of clips."""
    inputs = tuple((name, x.shape[1:], x.dtype) for name, x in sorted(batch.inputs.items()))
    targets = None if batch.targets is None else batch.targets.shape[1:]
    mappings = batch.frames_in, batch.frames_out, batch.speech
    return inputs, targets, batch.language, tuple(tuple(names) for names in mappings)


def _together(batches: Sequence[tuple[int, Batch]]) -> SharedBatch:
    """Return batches of equal shape as one; a single one as it is."""
    if len(batches) == 1:
        client, batch = batches[0]
        return SharedBatch(batch, ((client, replace(batch, alone=False)),))
    first = batches[0][1]
    rows = [_clips(batch) for _, batch in batches]
    joined: dict[tuple[int, ...], torch.Tensor] = {}  # most layers share one tensor

    def join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        key = tuple(map(id, tensors))
        if key not in joined:
            joined[key] = torch.cat(list(tensors))
        return joined[key]

    def mapped(name: str) -> dict[str, torch.Tensor]:
        mappings = [getattr(batch, name) for _, batch in batches]
        return {key: join([mapping[key] for mapping in mappings]) for key in mappings[0]}

    targets = [batch.targets for _, batch in batches if batch.targets is not None]
    whole = Batch(
        inputs=mapped("inputs"),
        frames_in=mapped("frames_in"),
        frames_out=mapped("frames_out"),
        speech=mapped("speech"),
        targets=torch.cat(targets) if targets else None,
        language=first.language,
    )
    parts, start = [], 0
    for (client, batch), n in zip(batches, rows, strict=True):
        own = slice(start, start + n)
        parts.append((client, replace(batch, alone=False, rows=own, of=sum(rows))))
        start += n
    return SharedBatch(whole, tuple(parts))


def _clips(batch: Batch) -> int:
    return len(next(iter(batch.inputs.values())))
