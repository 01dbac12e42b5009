"""Graphs in OpenVINO that give the outputs of their layers too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.export import require
from fedsim.export.openvino import Traced
from fedsim.export.openvino_graph import fill, give_names, in_float32
from fedsim.export.openvino_network import Network
from fedsim.export.openvino_run import Session, text_file
from fedsim.export.parting import Probe
from fedsim.quant.weights import dequantize_weight

if TYPE_CHECKING:
    from fedsim.quant.weights import PackedWeight


def probe(
    traced: Traced, name: str, weights: Sequence[PackedWeight], folder: Path, setting: str
) -> Probe:
    """Return a graph of exported files with the outputs of its layers.

    Arguments are those of `fedsim.quant.formats.ExportFormat.probe`.
    """
    core = require("openvino", "openvino").Core()
    model = traced.graphs[name].model.clone()
    bare = replace(traced.graphs[name], model=model)
    found = _layer_outputs(bare)
    _add_outputs(model, [port for _, port in found])
    values = [dequantize_weight(weight).numpy() for weight in weights]
    session = Session(core, in_float32(bare, values), "float")
    names = _names(fill(bare, weights), len(found))
    file = partial(_opened, core, text_file(folder / name), names, setting)
    return Probe([layer for layer, _ in found], session, file)


def _layer_outputs(bare: Network) -> list[tuple[int, Any]]:
    """Return layer and port of what is computed with each weight, in the graph's order.

    What follows from weights and constants alone, such as a transposed weight, is passed over.
    """
    known: dict[str, int | None] = {}  # nodes that need no input of the graph -> layer
    found = []
    for node in bare.model.get_ordered_ops():
        sources = [port.get_node().get_name() for port in node.input_values()]
        used = [layer for source in sources if (layer := known.get(source)) is not None]
        if (weight := bare.layers.get(node.get_friendly_name())) is not None:
            known[node.get_name()] = weight
        elif node.get_type_name() == "Constant" or (sources and known.keys() >= {*sources}):
            known[node.get_name()] = next(iter(used), None)
        elif used:
            found.append((used[0], node.output(0)))
    return found


def _add_outputs(model: Any, ports: Sequence[Any]) -> None:
    import openvino.opset13 as ops

    model.add_results([ops.result(port) for port in ports])


def _names(model: Any, n: int) -> list[str]:
    """Return what the nodes behind the last n outputs of a filled model are called in its file."""
    added = model.get_results()[-n:]
    nodes = [result.input_value(0).get_node() for result in added]
    for result in added:  # the file has none of them, and names go by the order of all nodes
        model.remove_result(result)
    give_names(model)
    return [node.get_friendly_name() for node in nodes]


def _opened(core: Any, text: Path, names: Sequence[str], setting: str) -> Session:
    model = core.read_model(text)
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    _add_outputs(model, [nodes[name].output(0) for name in names])
    return Session(core, model, setting)
