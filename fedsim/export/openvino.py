"""Writing a model for OpenVINO: the files of its ONNX export, with another graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.errors import FedsimError
from fedsim.export import ctc, onnx, require
from fedsim.export.openvino_graph import fill, layer_bytes, pad, room, save
from fedsim.export.openvino_network import Network, network
from fedsim.export.openvino_weights import DEPTHS, STORED
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.modelfile import load_leftovers
from fedsim.quant.modelheader import Manifest
from fedsim.quant.rows import Rows
from fedsim.quant.sizes import Sizes
from fedsim.quant.weights import PackedWeight

if TYPE_CHECKING:
    import torch

    from fedsim.speech.models.base import SpeechModel


@dataclass(frozen=True)
class Traced:
    """The files of a model, without the weights of its layers."""

    graph: Network
    in_onnx: onnx.Traced
    """What it is made from, and the files beside it."""

    def sizes(self, shapes: Sequence[tuple[int, ...]], weight_format: WeightFormat) -> Sizes:
        """Return the exact bytes of all files together for every plan of `DEPTHS`, where `shapes`
        are those of the weights of all layers."""
        kept = room(self.graph, shapes, weight_format)
        table = layer_bytes(self.graph, kept, shapes, weight_format)
        fixed = kept.text + kept.constants + self.in_onnx.others_bytes(None)
        return Sizes(DEPTHS, table, fixed)


def model_sizes(
    model: SpeechModel,
    stored: Mapping[str, torch.Tensor],
    manifest: Manifest,
    depths: Sequence[int],
    rows: Rows | None = None,
) -> Sizes:
    """Return the exact bytes of all files of a model together for every plan.

    Arguments are as those of `fedsim.quant.modelfile.model_sizes`; raises as `trace`. `rows` are
    of models with a decoder, which `trace` refuses.
    """
    traced = trace(model, load_leftovers(stored))
    shapes = [layer.shape for layer in model.layers]
    return traced.sizes(shapes, manifest.weight_format).restricted(depths)


def trace(model: SpeechModel, leftovers: Mapping[str, torch.Tensor]) -> Traced:
    """Trace the network of a model for the weights of any plan; it takes many seconds once.

    Args:
        model: in full precision, which it is again afterwards.
        leftovers: the rest of the state, as model files have it.

    Raises:
        FedsimError: if the model is not a CTC recognizer of raw audio, or a package is missing.
    """
    if not ctc.is_exportable(model):
        raise FedsimError(
            f"model {model.id!r} is a {type(model.module).__name__}, and only CTC recognizers of"
            f" raw audio (wav2vec 2.0 and its relatives) can be exported to openvino"
        )
    require("openvino", "openvino")
    traced = onnx.trace(model, leftovers)
    return Traced(network(traced.graphs[ctc.GRAPH]), traced)


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
        rows: of its vocabulary; None, since no recognizer without a decoder keeps a part.
        language: of whoever speaks; None to have it detected.
    """
    from fedsim.base.files import write_text

    for name, text in traced.in_onnx.others(rows, language).items():
        write_text(folder / name, text)
    others = sum(file.stat().st_size for file in folder.iterdir())
    save(fill(traced.graph, weights), folder)
    sizes = traced.sizes([weight.shape for weight in weights], weights[0].format)
    pad(folder, sizes.total([STORED[weight.bits] for weight in weights]) - others)
