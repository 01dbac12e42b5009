"""A layer as a matrix product: the rows of its input that it multiplies with, and its outputs.

A *row* is what one output frame is computed from: the input vector of a linear layer, the patch of
a convolution.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedsim.quant.layers import Layer


def patch_shape(module: nn.Module) -> tuple[int, int]:
    """Return (groups, inputs per group) of a layer in its form as a matrix product."""
    if isinstance(module, nn.Conv1d):
        return module.groups, module.in_channels // module.groups * module.kernel_size[0]
    assert isinstance(module, nn.Linear)
    return 1, module.in_features


def gather_rows(module: nn.Module, x: torch.Tensor, places: np.ndarray) -> torch.Tensor:
    """Return the input rows behind the output frames `places` (m, 2) = (clip, frame)."""
    clip, frame = at_places(x, places)
    if not isinstance(module, nn.Conv1d):
        return x[clip, frame] if x.ndim == 3 else x[clip]
    (k,), (s,), (d,) = module.kernel_size, module.stride, module.dilation
    if isinstance(module.padding, str):
        before = d * (k - 1) // 2 if module.padding == "same" else 0
    else:
        (before,) = module.padding
    offsets = torch.arange(k, device=x.device) * d - before
    at = frame[:, None] * s + offsets  # (m, k); outside the clip, the layer pads with zeros
    inside = (at >= 0) & (at < x.shape[2])
    patch = x[clip[:, None], :, at.clamp(0, x.shape[2] - 1)]  # (m, k, C)
    return (patch * inside[..., None]).transpose(1, 2)  # (m, C, k): the layout of a weight


def at_places(x: torch.Tensor, places: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return clips and frames of `places` (m, 2), each (m,), where `x` is."""
    clip, frame = torch.from_numpy(places).to(x.device).unbind(1)
    return clip, frame


def as_product(layer: Layer, groups: int, weight: torch.Tensor) -> torch.Tensor:
    """Return a layer's weight as (G, N / G, K), ready to be multiplied with rows (R, G, K)."""
    return weight.reshape(groups, layer.shape[0] // groups, -1)


def outputs(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the layer's outputs (R, N) for rows (R, G, K) and a weight (G, N / G, K)."""
    if rows.shape[1] == 1:
        return F.linear(rows[:, 0], weight[0], bias)
    out = torch.bmm(rows.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
    out = out.reshape(len(rows), -1)
    return out if bias is None else out + bias
