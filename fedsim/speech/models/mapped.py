"""Weights that a checkpoint holds as the network does: read by memory map, once per machine.

transformers maps a file whose weights have the type that is asked for. Networks are made in float32
here, whatever they are held in afterwards, so that everything is computed from the same numbers;
weights of a float16 or bfloat16 checkpoint are then copies, which every process would have alone.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn


def map_weights(module: nn.Module, place: str) -> None:
    """Let every weight that the checkpoint's files hold under its name, and equal to the bit, be a
    memory map of the file, in place.

    `place` is a folder, or the id of a model on the hub whose files are on this machine. A file
    that cannot be read is passed over: the network was loaded from others.
    """
    state = module.state_dict(keep_vars=True)
    for path in sorted(_folder(place).glob("*.safetensors")):
        with suppress(SafetensorError), safe_open(path, framework="pt") as file:
            for key in state.keys() & set(file.keys()):
                holder, kept = state[key], file.get_tensor(key)
                if (kept.dtype, kept.shape) == (holder.dtype, holder.shape) and _same(kept, holder):
                    holder.data = kept


def _folder(place: str) -> Path:
    """Return the folder of a checkpoint's files."""
    from transformers.utils import cached_file

    if Path(place).is_dir():
        return Path(place)
    return Path(str(cached_file(place, "config.json", local_files_only=True))).parent


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors of one type and shape are equal to the bit."""
    first, second = (x.contiguous().reshape(-1).view(torch.uint8) for x in (one, other))
    return torch.equal(first, second)
