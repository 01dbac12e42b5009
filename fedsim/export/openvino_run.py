"""Running an exported recognizer with nothing but numpy and OpenVINO, in a process of its own.

    python -m fedsim.export.openvino_run FOLDER CLIPS.npz SETTING

Prints what `fedsim.export.onnx_run` does. `SETTING` is `float`, which computes in float32, or
`default`: what OpenVINO chooses for the processor.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.export import onnx_run

TEXT = "openvino_model.xml"
SETTINGS: dict[str, dict[str, Any]] = {
    "float": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0},
    "default": {},
}
"""Properties of a compiled model."""
_THREADS = {
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    # Processes side by side would all be bound to the same core.
    "ENABLE_CPU_PINNING": False,
}


def main() -> None:
    """Run the command line."""
    folder, clips, setting = Path(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3]
    import openvino

    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads what computes, before memory is measured
    onnx_run.measure(
        lambda: onnx_run.opened(folder, lambda name: Session(core, folder / TEXT, setting)),
        clips,
        fills_window=False,
    )


class Session:
    """A model on one thread, which answers as a session of onnxruntime does."""

    def __init__(self, core: Any, model: Any, setting: str) -> None:
        """Compile a model, a path or an `openvino.Model`, in one of `SETTINGS`."""
        settings = SETTINGS[setting] | _THREADS
        self._request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(self, names: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Return all outputs; `names` are those that are asked for, None for all."""
        return list(self._request.infer(inputs).values())


if __name__ == "__main__":
    main()
