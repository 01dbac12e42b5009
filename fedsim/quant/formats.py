"""Formats of model files besides fedsim's own: what runtimes that ship execute.

`fedsim.export` writes them. Imports no torch, so that scenarios are checked without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from fedsim.errors import FedsimError
from fedsim.quant.packing import MAX_BITS, MIN_BITS
from fedsim.registry import Lazy, Registry

OWN = "fedsim"
"""Stands for fedsim's own model file where a format is named."""
OWN_SUMMARY = "One safetensors file, which fedsim runs; 2 to 16 bits."


@dataclass(frozen=True)
class Program:
    """What transcribes clips with exported files, in a process of its own."""

    module: str
    """Run as `python -m MODULE FOLDER CLIPS.npz SETTING`."""
    package: str
    """The runtime, as it is imported and called."""
    settings: Mapping[str, str]
    """Setting -> what a table calls it; the first computes with float32."""
    remedy: str
    """What to set for the first, in words."""
    legend: str
    """What they mean."""


@dataclass(frozen=True)
class ExportFormat:
    """A runtime's format."""

    summary: str
    depths: tuple[int, ...]
    """Bit depths that its files store as they are."""
    stored: Mapping[int, int]
    """Bit depth -> the depth at which it is stored; one that is missing cannot be."""
    trace: Callable[..., Any]
    """f(model, leftovers): the model's network in this format, for the weights of any plan, where
    `leftovers` is the rest of its state as model files have it. Raises `FedsimError` for a model
    that cannot be exported."""
    write: Callable[..., None]
    """f(traced, weights, folder, rows=, language=): write the files into an empty folder, where
    `weights` are the packed weights of the model's layers, one of them maybe of some `rows` of a
    vocabulary only, and `language` that of whoever speaks."""
    packages: tuple[str, ...]
    """Names under which the packages that it needs are imported."""
    extra: str
    """The extra of fedsim-speech that installs them."""
    sizes: Callable[..., Any]
    """f(model, leftovers as stored, manifest, depths, rows): the exact bytes of all files together
    for every plan, a `fedsim.quant.sizes.Sizes`. Arguments are those of
    `fedsim.quant.modelfile.model_sizes`; raises as `trace`."""
    program: Program
    """That runs its files."""
    probe: Callable[..., Any]
    """f(traced, name, weights, folder, setting): the graph called `name` among those of exported
    files, with the outputs of its layers, a `fedsim.export.parting.Probe`; `traced` and `weights`
    are those that were written into `folder`, and `setting` is one of the program's."""


FORMATS: Registry[ExportFormat] = Registry("export format")
FORMATS.add(
    "onnx",
    ExportFormat(
        "ONNX for onnxruntime and what builds on it; needs the extra fedsim-speech[onnx].",
        depths=(2, 4, 6, 8),
        stored={2: 2, 3: 4, 4: 4, 5: 6, 6: 6, 7: 8, 8: 8},
        trace=Lazy("fedsim.export.onnx:trace"),
        write=Lazy("fedsim.export.onnx:write"),
        packages=("onnx", "onnxscript", "onnxruntime"),
        extra="onnx",
        sizes=Lazy("fedsim.export.onnx:model_sizes"),
        program=Program(
            "fedsim.export.onnx_run",
            "onnxruntime",
            {"0": "level 0", "4": "level 4"},
            "session.qdq_matmulnbits_accuracy_level to 0",
            "level: onnxruntime's accuracy level of products with packed weights; 4, its default,"
            " rounds inputs to 8 bits,\n0 does not (session.qdq_matmulnbits_accuracy_level).",
        ),
        probe=Lazy("fedsim.export.onnx_probe:probe"),
    ),
)
FORMATS.add(
    "openvino",
    ExportFormat(
        "OpenVINO's own format, with packed weights of 3 and 6 bits too; needs the extra"
        " fedsim-speech[openvino].",
        depths=(2, 3, 4, 6, 8),
        stored={2: 2, 3: 3, 4: 4, 5: 6, 6: 6, 7: 8, 8: 8},
        trace=Lazy("fedsim.export.openvino:trace"),
        write=Lazy("fedsim.export.openvino:write"),
        packages=("onnx", "onnxscript", "openvino"),
        extra="openvino",
        sizes=Lazy("fedsim.export.openvino:model_sizes"),
        program=Program(
            "fedsim.export.openvino_run",
            "openvino",
            {"float": "float32", "default": "default"},
            "INFERENCE_PRECISION_HINT to f32",
            "float32: with INFERENCE_PRECISION_HINT: f32 and without dynamic quantization; default:"
            " as OpenVINO\nchooses for the processor, which may be bfloat16 or inputs rounded to 8"
            " bits.",
        ),
        probe=Lazy("fedsim.export.openvino_probe:probe"),
    ),
)


def require_packages(name: str) -> None:
    """Raise `FedsimError` if a package that a format needs is not installed."""
    if name == OWN:
        return
    chosen = FORMATS[name]
    for package in chosen.packages:
        if find_spec(package) is None:
            raise FedsimError(
                f"{name} needs the package {package}, which is not installed: pip install"
                f" 'fedsim-speech[{chosen.extra}]'"
            )


def file_words(name: str) -> str:
    """Return what of a client a budget is for, in words."""
    return "model file" if name == OWN else f"model in {name}"


def depths_of(name: str) -> tuple[int, ...]:
    """Return the bit depths of a format; raises `FedsimError` for one that does not exist."""
    return tuple(range(MIN_BITS, MAX_BITS + 1)) if name == OWN else FORMATS[name].depths
