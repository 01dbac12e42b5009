"""Reads CTranslate2's model file, and renames its variables as transformers does."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

import numpy as np

from fedsim.errors import FedsimError

# CTranslate2's numbers for element types.
_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}

# What CTranslate2 calls the modules outside the layers, and the parameters of any module.
_MODULES = {
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
    "layer_norm": "layer_norm",
    "conv1": "conv1",
    "conv2": "conv2",
}
_LEAVES = {
    "weight": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "encodings": "weight",
}


def read_variables(data: bytes) -> dict[str, np.ndarray]:
    """Return every variable of a CTranslate2 model file (binary version 6) by name.

    Arrays are views into `data` with the stored shape and element type. An alias names the array
    of the variable that it stands for.
    """
    reader = _Reader(data)
    version = reader.number("I")
    if version != 6:
        raise FedsimError(f"the CTranslate2 file has version {version}; use one of version 6")
    reader.text()  # the name of the model's class
    reader.number("I")  # the revision of that class
    variables = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        dtype = reader.number("B")
        raw = reader.take(reader.number("I"))
        if dtype not in _DTYPES:
            raise FedsimError(f"variable {name} has the unknown type {dtype}; download it again")
        variables[name] = np.frombuffer(raw, _DTYPES[dtype]).reshape(shape)
    for _ in range(reader.number("I")):
        alias = reader.text()
        variables[alias] = variables[reader.text()]
    return variables


def to_transformers(variables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the state dict of `WhisperForConditionalGeneration` from CTranslate2's variables."""
    return {key: part for name, array in variables.items() for key, part in _renamed(name, array)}


def _renamed(name: str, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return the state-dict entries that one variable becomes: none for a mere setting."""
    if name == "decoder/projection/weight":
        return [("proj_out.weight", array)]
    side, _, rest = name.partition("/")
    if layer := re.match(r"layer_(\d+)/", rest):
        return _renamed_in_layer(f"model.{side}.layers.{layer[1]}", rest[layer.end() :], array)
    module, _, leaf = rest.partition("/")
    if not leaf:
        return []
    return [(f"model.{side}.{_MODULES[module]}.{_LEAVES[leaf]}", array)]


def _renamed_in_layer(prefix: str, rest: str, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
    block, module, leaf = rest.split("/")
    leaf = _LEAVES[leaf]
    if block == "ffn":
        target = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}[module]
        return [(f"{prefix}.{target}.{leaf}", array)]
    attention = {"self_attention": "self_attn", "attention": "encoder_attn"}[block]
    if module == "layer_norm":
        return [(f"{prefix}.{attention}_layer_norm.{leaf}", array)]
    # CTranslate2 stacks weights that are multiplied with the same input.
    stacked = {
        "self_attn": {"linear_0": "qkv", "linear_1": ("out",)},
        "encoder_attn": {"linear_0": "q", "linear_1": "kv", "linear_2": ("out",)},
    }[attention][module]
    parts = []
    for projection, part in zip(stacked, np.split(array, len(stacked)), strict=True):
        if (projection, leaf) == ("k", "bias"):
            # Whisper's keys have no bias; CTranslate2 fills the gap with zeros.
            if part.any():
                raise FedsimError(
                    f"{prefix}.{attention} has a bias on its keys, unlike any Whisper; use the "
                    f"file of a Whisper model"
                )
            continue
        parts.append((f"{prefix}.{attention}.{projection}_proj.{leaf}", part))
    return parts


class _Reader:
    """Reads little-endian binary data from start to end."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, size: int) -> memoryview:
        piece = self._data[self._at : self._at + size]
        if len(piece) != size:
            raise FedsimError("the CTranslate2 file ends too early; download it again")
        self._at += size
        return piece

    def number(self, kind: str) -> int:
        """Return the next unsigned number, of `struct`'s format B, H or I."""
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        """Return the next string; its stored length counts the NUL at its end."""
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode()
