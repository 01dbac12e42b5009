"""Answers of OpenVINO that are none: one sentence, not an empty transcript."""

from __future__ import annotations

import numpy as np
import pytest

from fedsim.errors import FedsimError
from fedsim.export.openvino_run import Session

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")


def test_an_answer_without_frames_is_an_error():
    """As OpenVINO gives by default with weights of 2 bits on some processors."""
    import openvino.opset13 as ops

    x = ops.parameter([-1], np.float32, name="x")
    kept = ops.slice(x, [0], [2], [1])
    session = Session(openvino.Core(), openvino.Model([kept], [x], "first two"), "float")
    assert session.run(None, {"x": np.arange(3, dtype=np.float32)})[0].tolist() == [0, 1]
    with pytest.raises(FedsimError, match="returns nothing, as it does"):
        session.run(None, {"x": np.zeros(0, np.float32)})
