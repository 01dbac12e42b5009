"""Writing a model for OpenVINO: the files of its ONNX export, with another graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.export import onnx, require
from fedsim.export.openvino_graph import fill, layer_bytes, room, save
from fedsim.export.openvino_network import Network, network
from fedsim.export.openvino_run import text_file
from fedsim.export.openvino_weights import DEPTHS, STORED
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.modelfile import load_leftovers
from fedsim.quant.modelheader import Manifest
from fedsim.quant.rows import Rows, trimmed_layers
from fedsim.quant.sizes import Sizes
from fedsim.quant.weights import PackedWeight

if TYPE_CHECKING:
    import torch

    from fedsim.speech.models.base import SpeechModel


@dataclass(frozen=True)
class Traced:
    """The files of a model, without the weights of its layers."""

    graphs: Mapping[str, Network]
    """By the name that each has in ONNX."""
    in_onnx: onnx.Traced
    """What they are made from, and the files beside them."""
    _planned: dict[Any, tuple[int, np.ndarray]] = field(default_factory=dict)
    """Bytes of all graphs, and of each layer at each depth, by format and shapes of weights."""

    def sizes(
        self,
        shapes: Sequence[tuple[int, ...]],
        weight_format: WeightFormat,
        rows: Rows | None = None,
    ) -> Sizes:
        """Return the exact bytes of all files together for every plan of `DEPTHS`.

        Args:
            shapes: of the weights of all layers.
            weight_format: how codes of weights become numbers.
            rows: of the vocabulary that one of the weights has; None for all.
        """
        key = weight_format, tuple(shapes)
        if key not in self._planned:  # a graph is written to see how long it is
            fixed, tables = 0, []
            for bare in self.graphs.values():
                kept = room(bare, shapes, weight_format)
                fixed += kept.text + kept.constants
                tables.append(layer_bytes(bare, kept, shapes, weight_format))
            self._planned[key] = fixed, np.sum(tables, axis=0)
        fixed, table = self._planned[key]
        return Sizes(DEPTHS, table, fixed + self.in_onnx.others_bytes(rows))


def model_sizes(
    model: SpeechModel,
    stored: Mapping[str, torch.Tensor],
    manifest: Manifest,
    depths: Sequence[int],
    rows: Rows | None = None,
) -> Sizes:
    """Return the exact bytes of all files of a model together for every plan.

    Arguments are as those of `fedsim.quant.modelfile.model_sizes`; raises as `trace`.
    """
    traced = trace(model, load_leftovers(stored))
    shapes = [layer.shape for layer in trimmed_layers(model.layers, rows)]
    return traced.sizes(shapes, manifest.weight_format, rows).restricted(depths)


def trace(model: SpeechModel, leftovers: Mapping[str, torch.Tensor]) -> Traced:
    """Trace the network of a model for the weights of any plan; it takes many seconds once.

    Args:
        model: in full precision, which it is again afterwards.
        leftovers: the rest of the state, as model files have it.

    Raises:
        FedsimError: if the model is neither a CTC recognizer of raw audio nor a Whisper, or a
            package is missing.
    """
    onnx.exporter_of(model, "openvino")
    require("openvino", "openvino")
    traced = onnx.trace(model, leftovers)
    return Traced({name: network(bare) for name, bare in traced.graphs.items()}, traced)


def write(
    traced: Traced,
    weights: Sequence[PackedWeight],
    folder: Path,
    *,
    rows: Rows | None = None,
    language: str | None = None,
) -> None:
    """Write all files of a model with these weights into an empty folder.

    Args:
        traced: the model.
        weights: of its layers.
        folder: to write into.
        rows: of its vocabulary that one of the weights has; None for all.
        language: of whoever speaks; None to have it detected.
    """
    from fedsim.base.files import write_text

    for name, text in traced.in_onnx.others(rows, language).items():
        write_text(folder / name, text)
    for name, bare in traced.graphs.items():
        save(fill(bare, weights), folder / name)
    sizes = traced.sizes([weight.shape for weight in weights], weights[0].format, rows)
    written = sum(file.stat().st_size for file in folder.iterdir())
    spare = sizes.total([STORED[weight.bits] for weight in weights]) - written
    assert spare >= 0, spare
    with text_file(folder / next(iter(traced.graphs))).open("ab") as file:
        file.write(b"\n" * spare)
