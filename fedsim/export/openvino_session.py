"""Exported models in OpenVINO, in this process: one thread, and one model at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from fedsim.base.files import write_text
from fedsim.export import require
from fedsim.export.onnx import exporter_of
from fedsim.export.onnx_session import Recognize
from fedsim.export.openvino import Traced
from fedsim.export.openvino_graph import fill
from fedsim.export.openvino_run import Session
from fedsim.speech.models.base import Hypothesis

if TYPE_CHECKING:
    from fedsim.quant.rows import Rows
    from fedsim.quant.weights import PackedWeight
    from fedsim.speech.models.base import SpeechModel


def by_default(
    traced: Traced, weights: Sequence[PackedWeight], model: SpeechModel, rows: Rows | None
) -> AbstractContextManager[Recognize]:
    """Return a context with a model as OpenVINO runs it by default."""
    return _opened(traced, weights, model, rows, "default")


def in_float(
    traced: Traced, weights: Sequence[PackedWeight], model: SpeechModel, rows: Rows | None
) -> AbstractContextManager[Recognize]:
    """Return a context with a model that OpenVINO runs in float32."""
    return _opened(traced, weights, model, rows, "float")


@contextmanager
def _opened(
    traced: Traced,
    weights: Sequence[PackedWeight],
    model: SpeechModel,
    rows: Rows | None,
    setting: str,
) -> Iterator[Recognize]:
    core, exporter = require("openvino", "openvino").Core(), exporter_of(model)
    sessions = {
        name: Session(core, fill(bare, weights), setting) for name, bare in traced.graphs.items()
    }

    def recognize(clips: Sequence[np.ndarray], language: str | None) -> list[Hypothesis]:
        for _ in model.batches(clips, language):
            pass  # raises for a clip that the model cannot take
        with TemporaryDirectory() as home:
            for name, text in traced.in_onnx.others(rows, language).items():
                write_text(Path(home) / name, text)
            hear = exporter.recognizer(Path(home), sessions.__getitem__)
        return [Hypothesis(*hear(clip)) for clip in clips]

    yield recognize
