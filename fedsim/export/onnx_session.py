"""Exported models in onnxruntime, in this process: one thread, and one model at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.base.files import write_text
from fedsim.errors import FedsimError
from fedsim.export import require
from fedsim.export.onnx import Traced, exporter_of
from fedsim.export.onnx_graph import fill
from fedsim.speech.models.base import Hypothesis

if TYPE_CHECKING:
    from fedsim.quant.rows import Rows
    from fedsim.quant.weights import PackedWeight
    from fedsim.speech.models.base import SpeechModel

Recognize = Callable[[Sequence[np.ndarray], str | None], list[Hypothesis]]
"""f(clips, language) -> one hypothesis per clip."""
_DEFAULT, _FLOAT = 4, 0
"""Accuracy levels of onnxruntime: inputs of packed products rounded to 8 bits, or in float32."""
_ERRORS_ONLY = 3


def by_default(
    traced: Traced, weights: Sequence[PackedWeight], model: SpeechModel, rows: Rows | None
) -> AbstractContextManager[Recognize]:
    """Return a context with a model as onnxruntime runs it by default.

    The context raises `FedsimError` if onnxruntime is not installed or refuses the model.
    """
    return _opened(traced, weights, model, rows, _DEFAULT)


def with_float_inputs(
    traced: Traced, weights: Sequence[PackedWeight], model: SpeechModel, rows: Rows | None
) -> AbstractContextManager[Recognize]:
    """Return a context with a model of which onnxruntime rounds no inputs.

    It raises as that of `by_default`.
    """
    return _opened(traced, weights, model, rows, _FLOAT)


def options(level: int) -> Any:
    """Return the options of a session of one thread at an accuracy level.

    Raises `FedsimError` if onnxruntime is not installed.
    """
    chosen = require("onnxruntime", "onnx").SessionOptions()
    chosen.intra_op_num_threads = chosen.inter_op_num_threads = 1
    chosen.log_severity_level = _ERRORS_ONLY
    # Clips have many lengths: a plan of memory for each would be kept.
    chosen.enable_mem_pattern = False
    chosen.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
    return chosen


@contextmanager
def _opened(
    traced: Traced,
    weights: Sequence[PackedWeight],
    model: SpeechModel,
    rows: Rows | None,
    level: int,
) -> Iterator[Recognize]:
    runtime, exporter = require("onnxruntime", "onnx"), exporter_of(model)
    sessions = {}
    for name, bare in traced.graphs.items():
        data = fill(bare, weights).SerializeToString()
        try:
            session = runtime.InferenceSession(data, options(level), ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has an exception of its own for each status
            raise FedsimError(
                f"onnxruntime {runtime.__version__} does not load {name} ({type(error).__name__}):"
                f" install the onnxruntime that fedsim-speech[onnx] asks for"
            ) from error
        sessions[name] = session

    def recognize(clips: Sequence[np.ndarray], language: str | None) -> list[Hypothesis]:
        for _ in model.batches(clips, language):
            pass  # raises for a clip that the model cannot take
        with TemporaryDirectory() as home:
            for name, text in traced.others(rows, language).items():
                write_text(Path(home) / name, text)
            hear = exporter.recognizer(Path(home), sessions.__getitem__)
        return [Hypothesis(*hear(clip)) for clip in clips]

    yield recognize
