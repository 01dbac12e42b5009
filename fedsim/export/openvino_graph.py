"""A traced network in OpenVINO, filled with the packed weights of one plan after another.

OpenVINO keeps a network in two files: all constants, and a text that lists the nodes, with the
place of each constant.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.export.openvino_network import Network
from fedsim.export.openvino_run import constants_file, text_file
from fedsim.export.openvino_weights import DEPTHS, STORED, UNPACKED, WeightNodes, parts_bytes
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.weights import PackedWeight, blank_weight

Shape = tuple[int, ...]
_MOST_BITS = 8
_DEPTHS = tuple(STORED)
"""Bit depths that weights may have; those of one depth share a zero point."""
_SIZE = re.compile(r"<dim>-?\d+</dim>")
_INPUTS = re.compile(r"<input>.*?</input>")
_TYPE = re.compile(r' precision="\w+"')
_NOTES = re.compile(r"<rt_info>.*?</rt_info>|<rt_info ?/>")
_NUMBERS = re.compile(r'(<layer id|from-layer|to-layer|" name)="\d+"')
_OFFSET = re.compile(r'offset="\d+"')
_UNPACKING = re.compile(r'<layer [^>]*type="Convert"[^>]*><data destination_type="u8".*?</layer>')
_EDGE = re.compile(r"<edge [^>]*>")


@dataclass(frozen=True)
class Room:
    """The bytes of both files beside the constants of weights.

    The text numbers all nodes and says where each constant begins, so that its length depends on
    the whole plan. It is padded to a length that is a sum over layers: every number takes as many
    digits as the largest can have, and a layer of 3 or 6 bits has nodes that others lack.
    """

    text: int
    """Bytes of the text without those nodes."""
    unpacking: int
    """Bytes in the text of what unpacks one constant of 3 or 6 bits to 4 or 8."""
    constants: int
    """Bytes of all other constants."""


def fill(bare: Network, packed: Sequence[PackedWeight], *, longest: bool = False) -> Any:
    """Return the `openvino.Model` of a network with packed weights.

    Args:
        bare: the network.
        packed: weight of each layer, of 2 to 8 bits.
        longest: let every layer have all nodes that a weight can need.
    """
    model = bare.model.clone()
    shared: dict[Any, Any] = {}
    for i, old in enumerate(model.get_parameters()):
        name = old.get_friendly_name()
        if name not in bare.layers:
            continue
        as_if = _DEPTHS[i % len(_DEPTHS)] if longest else None
        weight = WeightNodes(packed[bare.layers[name]], shared, longest_as=as_if)
        whole = weight.whole()
        for target in old.output(0).get_target_inputs():
            node = target.get_node()
            if node.get_type_name() == "Gather" and weight.looks_up():
                node.output(0).replace(weight.rows(node.input_value(1)).output(0))
            else:
                target.replace_source_output(whole.output(0))
        model.remove_parameter(old)
    model.validate_nodes_and_infer_types()
    return model


def in_float32(bare: Network, weights: Sequence[np.ndarray]) -> Any:
    """Return the `openvino.Model` of a network with weights (N, ...) in float32, by layer."""
    import openvino.opset13 as ops

    model = bare.model.clone()
    for old in model.get_parameters():
        if (layer := bare.layers.get(old.get_friendly_name())) is not None:
            old.output(0).replace(ops.constant(weights[layer]).output(0))
            model.remove_parameter(old)
    model.validate_nodes_and_infer_types()
    return model


def room(bare: Network, shapes: Sequence[Shape], weight_format: WeightFormat) -> Room:
    """Return what both files take beside the constants of weights, whatever the plan."""
    blank = [blank_weight(shape, _MOST_BITS, weight_format) for shape in shapes]
    model = fill(bare, blank, longest=True)
    weights = sum(parts_bytes(shapes[i], _MOST_BITS, weight_format) for i in held(bare))
    n_more = _constant_bytes(model) - _constant_bytes(bare.model) - weights
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "graph"
        save(bare.model.clone(), file)
        # Equal constants are stored once.
        n_constants = constants_file(file).stat().st_size + n_more
        save(model, file)
        text = text_file(file).read_text()
    widest = "9" * len(str(len(model.get_ops())))
    text = _NUMBERS.sub(rf'\1="{widest}"', text)
    text = _OFFSET.sub(f'offset="{"9" * len(str(n_constants + weights))}"', text)
    one = len(_UNPACKING.findall(text)[0]) + len(_EDGE.findall(text)[0])
    # Look-ups unpack at other depths too: theirs are not taken out.
    n_unpackings = _n_read_whole(bare) * (1 + weight_format.zero_points)
    return Room(len(text) - one * n_unpackings, one, n_constants)


def layer_bytes(
    bare: Network, room: Room, shapes: Sequence[Shape], weight_format: WeightFormat
) -> np.ndarray:
    """Return the bytes in both files of each layer's weight at each of `DEPTHS`, int64 (L, D).

    They never fall with the depth, as allocators count on: a weight so small that it takes more at
    3 bits than at 4, with what unpacks it, has as much room at 4.
    """
    table = np.zeros((len(shapes), len(DEPTHS)), np.int64)
    for i in held(bare):
        for column, bits in enumerate(DEPTHS):
            unpackings = (1 + weight_format.zero_points) * room.unpacking if bits in UNPACKED else 0
            table[i, column] = parts_bytes(shapes[i], bits, weight_format) + unpackings
    return np.maximum.accumulate(table, axis=1)


def _n_read_whole(bare: Network) -> int:
    """Return how many weights are read by anything but look-ups."""
    return sum(
        any(target.get_node().get_type_name() != "Gather" for target in targets)
        for node in bare.model.get_parameters()
        if node.get_friendly_name() in bare.layers
        for targets in [node.output(0).get_target_inputs()]
    )


def held(bare: Network) -> list[int]:
    """Return the numbers of the layers whose weights a network takes."""
    return sorted(bare.layers.values())


def save(model: Any, graph: Path) -> None:
    """Write the two files of a graph, whose nodes are given short names.

    Args:
        model: `openvino.Model`.
        graph: folder, and the name that the graph has in ONNX.

    Raises `OSError` if they cannot be written.
    """
    import openvino

    give_names(model)
    text = text_file(graph)
    try:
        openvino.save_model(model, text, compress_to_fp16=False)
    except RuntimeError as error:  # it has no other for a full disk
        raise OSError(f"OpenVINO does not write {text.name}: {error}") from error
    text.write_text(_shortened(text.read_text()))


def give_names(model: Any) -> None:
    """Give the nodes of an `openvino.Model` the names that they have in its file."""
    for i, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() != "Parameter":
            node.set_friendly_name(f"{i}")


def _shortened(text: str) -> str:
    """Return the text of a network without what is worked out again when it is loaded: sizes and
    types of what flows between nodes."""
    text = re.sub(r">\s+<", "><", text).replace(" />", "/>")
    text = _NOTES.sub("", _SIZE.sub("", text))
    return _INPUTS.sub(lambda found: _TYPE.sub("", found[0]), text)


def _constant_bytes(model: Any) -> int:
    found = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    return sum(node.get_byte_size() for node in found)
