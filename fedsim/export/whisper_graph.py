"""Whisper's encoder and decoder as ONNX graphs, without the weights of layers.

They are written rather than traced: there are two kinds of blocks, and torch needs minutes for the
shapes of a decoder with a past. Every weight of a layer is an input of the graph, called as in the
state of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

OPSET, IR = 21, 10
FLOAT, INT64, BOOL = 1, 7, 9
"""Of `onnx.TensorProto`."""
_ALL = 2**31 - 1
"""Behind the last element of any axis."""


class Graph:
    """Nodes of a Whisper, with the constants and the weights that they read."""

    def __init__(self, network: Any, weights: Sequence[str]) -> None:
        """`weights` are the names of the modules whose weights are inputs of the graph."""
        self.state = network.state_dict()
        self.config = network.config
        self.weights = frozenset(weights)
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.used: dict[str, tuple[int, ...]] = {}
        """Name -> shape of each weight that is read."""

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        from onnx import helper

        output = name or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def integers(self, *values: int) -> str:
        """Return the name of an integer constant (len(values),)."""
        return self.constant("_".join(["i", *map(str, values)]), np.array(values, "<i8"))

    def number(self, value: float) -> str:
        """Return the name of a float32 constant (1,)."""
        return self.constant(f"f_{value:g}", np.array([value], "<f4"))

    def constant(self, name: str, values: np.ndarray) -> str:
        """Add a constant, once; return its name."""
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(values, name)
        return name

    def tensor(self, module: str, part: str = "weight") -> str:
        """Return the name of a module's weight or bias."""
        name = f"{module}.{part}"
        values = self.state[name]
        if part == "weight" and module in self.weights:
            self.used[name] = tuple(values.shape)
            return name
        return self.constant(name, values.detach().float().numpy())

    def linear(self, x: str, module: str) -> str:
        """Return x times the transpose of a weight, plus a bias if there is one."""
        turned = self.add("Transpose", self.tensor(module), perm=[1, 0])
        product = self.add("MatMul", x, turned)
        if f"{module}.bias" not in self.state:
            return product
        return self.add("Add", product, self.tensor(module, "bias"))

    def norm(self, x: str, module: str) -> str:
        """Return a layer norm."""
        parts = self.tensor(module), self.tensor(module, "bias")
        return self.add("LayerNormalization", x, *parts, axis=-1, epsilon=1e-5)

    def convolution(self, x: str, module: str, stride: int) -> str:
        """Return a convolution over three frames, and its GELU."""
        parts = self.tensor(module), self.tensor(module, "bias")
        return self.add("Gelu", self.add("Conv", x, *parts, pads=[1, 1], strides=[stride]))

    def perceptron(self, x: str, block: str) -> str:
        """Return the second half of a block."""
        inner = self.linear(self.norm(x, f"{block}.final_layer_norm"), f"{block}.fc1")
        return self.add("Add", x, self.linear(self.add("Gelu", inner), f"{block}.fc2"))

    def split(self, x: str, heads: int) -> str:
        """Return (B, T, d) as (B, H, T, d / H)."""
        cut = self.add("Reshape", x, self.integers(0, 0, heads, self.config.d_model // heads))
        return self.add("Transpose", cut, perm=[0, 2, 1, 3])

    def query(self, x: str, module: str, heads: int) -> str:
        """Return scaled queries (B, H, T, d / H)."""
        scale = self.number((self.config.d_model // heads) ** -0.5)
        return self.split(self.add("Mul", self.linear(x, f"{module}.q_proj"), scale), heads)

    def scores(self, query: str, keys: str) -> str:
        """Return the products of queries and keys (B, H, T, keys)."""
        return self.add("MatMul", query, self.add("Transpose", keys, perm=[0, 1, 3, 2]))

    def attended(self, x: str, found: str, module: str) -> str:
        """Return x plus what heads (B, H, T, d / H) have found."""
        turned = self.add("Transpose", found, perm=[0, 2, 1, 3])
        joined = self.add("Reshape", turned, self.integers(0, 0, self.config.d_model))
        return self.add("Add", x, self.linear(joined, f"{module}.out_proj"))

    def cut(self, x: str, axis: int, length: str, *, name: str = "") -> str:
        """Return the first elements of an axis."""
        return self.add("Slice", x, self.integers(0), length, self.integers(axis), name=name)


def encoder(graph: Graph) -> tuple[list[Any], list[Any]]:
    """Add the encoder: `input_features` (B, mels, frames) -> `last_hidden_state` (B, L, d).

    Loaders may fill a clip up to 30 s whatever the window is: frames behind it are cut. Returns the
    inputs and the outputs.
    """
    config, root = graph.config, "model.encoder"
    frames = 2 * config.max_source_positions
    x = graph.cut("input_features", 2, graph.integers(frames))
    x = graph.convolution(x, f"{root}.conv1", 1)
    x = graph.convolution(x, f"{root}.conv2", 2)
    x = graph.add("Transpose", x, perm=[0, 2, 1])
    x = graph.add("Add", x, graph.tensor(f"{root}.embed_positions"))
    heads = config.encoder_attention_heads
    for i in range(config.encoder_layers):
        block, own = f"{root}.layers.{i}", f"{root}.layers.{i}.self_attn"
        y = graph.norm(x, f"{block}.self_attn_layer_norm")
        query = graph.query(y, own, heads)
        keys = graph.split(graph.linear(y, f"{own}.k_proj"), heads)
        values = graph.split(graph.linear(y, f"{own}.v_proj"), heads)
        shares = graph.add("Softmax", graph.scores(query, keys), axis=-1)
        x = graph.attended(x, graph.add("MatMul", shares, values), own)
        x = graph.perceptron(x, block)
    graph.add("Identity", graph.norm(x, f"{root}.layer_norm"), name="last_hidden_state")
    shape = ["batch", config.max_source_positions, config.d_model]
    return (
        [_info("input_features", FLOAT, ["batch", config.num_mel_bins, "frames"])],
        [_info("last_hidden_state", FLOAT, shape)],
    )


def decoder(graph: Graph) -> tuple[list[Any], list[Any]]:
    """Add the decoder: tokens -> `logits` (B, U, V), with the keys and values of each block.

    `use_cache_branch` says whether the past is used. If it is, the encoder's hidden states are cut
    to none, and of their keys and values come out those of no clips. If not, so is the past of
    tokens, and the scores of frames of the past are -inf. Before there is a past, loaders give one
    of no clips, or zeros. Keys and values of frames of the past and of new ones are not
    concatenated, since all of them would be copied for every token. Returns the inputs and the
    outputs.
    """
    config, root = graph.config, "model.decoder"
    heads, d = config.decoder_attention_heads, config.d_model
    cached = graph.add("Cast", "use_cache_branch", to=INT64)
    everything = graph.integers(_ALL)
    if_cached = graph.add("Mul", cached, everything)
    if_new = graph.add("Sub", everything, if_cached)
    unseen = graph.add("Where", "use_cache_branch", graph.number(0.0), graph.number(float("-inf")))
    states = graph.cut("encoder_hidden_states", 1, if_new)
    batch = graph.add("Shape", "input_ids", end=1)
    shape = graph.add("Concat", batch, graph.integers(heads, -1, d // heads), axis=0)
    inputs = [
        _info("input_ids", INT64, ["batch", "tokens"]),
        _info("encoder_hidden_states", FLOAT, ["batch", "frames", d]),
    ]
    outputs = [_info("logits", FLOAT, ["batch", "tokens", "vocabulary"])]
    past: list[str] = []
    for i in range(config.decoder_layers):
        for side, part in product(("decoder", "encoder"), ("key", "value")):
            is_own = side == "decoder"
            old, new = (f"{what}.{i}.{side}.{part}" for what in ("past_key_values", "present"))
            length = "past" if is_own else "known"
            inputs.append(_info(old, FLOAT, ["batch_past", heads, length, d // heads]))
            sizes = ("batch", "past_and_tokens") if is_own else ("batch_new", "frames")
            outputs.append(_info(new, FLOAT, [sizes[0], heads, sizes[1], d // heads]))
            clips = graph.add("Reshape", old, shape)
            past.append(graph.cut(clips, 2, if_cached) if is_own else clips)
    inputs.append(_info("use_cache_branch", BOOL, [1]))
    x, future = _embedded(graph, past[0])
    for i in range(config.decoder_layers):
        block = f"{root}.layers.{i}"
        own_keys, own_values, far_keys, far_values = past[4 * i : 4 * i + 4]
        own, y = f"{block}.self_attn", graph.norm(x, f"{block}.self_attn_layer_norm")
        query = graph.query(y, own, heads)
        made = [graph.split(graph.linear(y, f"{own}.{p}_proj"), heads) for p in "kv"]
        present = f"present.{i}.decoder"
        keys = graph.add("Concat", own_keys, made[0], axis=2, name=f"{present}.key")
        values = graph.add("Concat", own_values, made[1], axis=2, name=f"{present}.value")
        scores = graph.add("Add", graph.scores(query, keys), future)
        found = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), values)
        x = graph.attended(x, found, own)

        far, y = f"{block}.encoder_attn", graph.norm(x, f"{block}.encoder_attn_layer_norm")
        query = graph.query(y, far, heads)
        keys, values = (graph.split(graph.linear(states, f"{far}.{p}_proj"), heads) for p in "kv")
        present = f"present.{i}.encoder"
        graph.cut(keys, 0, if_new, name=f"{present}.key")
        graph.cut(values, 0, if_new, name=f"{present}.value")
        old = graph.add("Add", graph.scores(query, far_keys), unseen)
        scores = graph.add("Concat", old, graph.scores(query, keys), axis=-1)
        shares, known = graph.add("Softmax", scores, axis=-1), graph.add("Shape", old, start=3)
        ends = graph.integers(_ALL), graph.integers(3)
        found = graph.add(
            "Add",
            graph.add("MatMul", graph.cut(shares, 3, known), far_values),
            graph.add("MatMul", graph.add("Slice", shares, known, *ends), values),
        )
        x = graph.attended(x, found, far)
        x = graph.perceptron(x, block)
    head = graph.linear(graph.norm(x, f"{root}.layer_norm"), "proj_out")
    graph.add("Identity", head, name="logits")
    return inputs, outputs


def _embedded(graph: Graph, past: str) -> tuple[str, str]:
    """Return the embedded tokens (B, U, d), and what is added to scores of tokens (U, P + U)."""
    root = "model.decoder"
    table = f"{root}.embed_tokens"
    if graph.state[f"{table}.weight"].data_ptr() == graph.state["proj_out.weight"].data_ptr():
        table = "proj_out"
    before = graph.add("Squeeze", graph.add("Shape", past, start=2, end=3))
    tokens = graph.add("Squeeze", graph.add("Shape", "input_ids", start=1))
    zero, one = (graph.constant(f"s_{i}", np.array(i, "<i8")) for i in (0, 1))
    after = graph.add("Add", before, tokens)
    places = graph.add("Range", before, after, one)
    positions = graph.add("Gather", graph.tensor(f"{root}.embed_positions"), places)
    x = graph.add("Add", graph.add("Gather", graph.tensor(table), "input_ids"), positions)
    columns = graph.add("Range", zero, after, one)
    rows = graph.add("Unsqueeze", places, graph.integers(1))
    ends = graph.number(0.0), graph.number(float("-inf"))
    return x, graph.add("Where", graph.add("LessOrEqual", columns, rows), *ends)


def _info(name: str, kind: int, shape: Sequence[int | str]) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, kind, shape)
