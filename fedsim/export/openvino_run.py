"""Running an exported recognizer with nothing but numpy and OpenVINO, in a process of its own.

    python -m fedsim.export.openvino_run FOLDER CLIPS.npz SETTING

Prints what `fedsim.export.onnx_run` does. `SETTING` is `float`, which computes in float32, or
`default`: what OpenVINO chooses for the processor.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import FedsimError
from fedsim.export import onnx_run, run_whisper
from fedsim.export.onnx_run import NO_ANSWER

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

    def session(name: str) -> Session:
        return Session(core, text_file(folder / name), setting)

    is_whisper = text_file(folder / run_whisper.ENCODER).exists()
    load = run_whisper.opened if is_whisper else onnx_run.opened
    onnx_run.measure(lambda: load(folder, session), clips, fills_window=is_whisper)


def text_file(graph: Path) -> Path:
    """Return the file that lists the nodes of a graph, of a path with the graph's name in ONNX."""
    return graph.with_name(f"openvino_{graph.stem}.xml")


def constants_file(graph: Path) -> Path:
    """Return the file with the constants of such a graph."""
    return text_file(graph).with_suffix(".bin")


@dataclass(frozen=True)
class Input:
    """An input of a graph, as onnxruntime describes it."""

    name: str
    shape: tuple[int | None, ...]
    """None for a length that varies."""


class Session:
    """A model on one thread, which answers as a session of onnxruntime does."""

    def __init__(self, core: Any, model: Any, setting: str) -> None:
        """Compile a model, a path or an `openvino.Model`, in one of `SETTINGS`."""
        settings = SETTINGS[setting] | _THREADS
        self._compiled = core.compile_model(model, "CPU", settings)
        self._request = self._compiled.create_infer_request()

    def get_inputs(self) -> list[Input]:
        """Return the inputs of the graph."""
        return [
            Input(
                port.get_any_name(), tuple(n.get_length() if n.is_static else None for n in shape)
            )
            for port in self._compiled.inputs
            for shape in [port.partial_shape]
        ]

    def run(self, names: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Return all outputs; `names` are those that are asked for, None for all.

        Raises `FedsimError` where the first, which is the answer, is empty: on processors that have
        AVX-512 BF16 and no AMX, OpenVINO 2026.4 so answers for weights of 2 bits, unless it
        computes in float32.
        """
        outputs = list(self._request.infer(inputs).values())
        if not outputs[0].size:  # the others may be caches, empty at first
            raise FedsimError(
                "OpenVINO returns nothing, as it does by default with weights of 2 bits on some"
                " processors; have it compute in float32 (INFERENCE_PRECISION_HINT: f32), or plan"
                " with 3 bits and more (clients.bit_depths)"
            )
        return outputs


if __name__ == "__main__":
    try:
        main()
    except FedsimError as error:
        print(error, file=sys.stderr)
        sys.exit(NO_ANSWER)
