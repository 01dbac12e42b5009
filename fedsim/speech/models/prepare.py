"""Changes that a network of transformers needs before its layers are looked up.

A layer is sensed, calibrated and quantized where its module is called. None of these changes
touches an output.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def drop_unused(module: nn.Module) -> None:
    """Remove the positional convolution that transformers gives a Conformer and never calls."""
    conformer: Any = getattr(module, "wav2vec2_conformer", None)
    if conformer is not None:
        conformer.encoder.pos_conv_embed = nn.Identity()


def linear_head(module: nn.Module) -> None:
    """Make the CTC head of a Parakeet, a convolution over one frame, the linear layer it is.

    Its module takes and returns (B, T, C), as no other convolution does.
    """
    head: Any = getattr(module, "ctc_head", None)
    if isinstance(head, nn.Conv1d):
        linear = nn.Linear(head.in_channels, head.out_channels, device="meta")
        linear.weight = nn.Parameter(head.weight[..., 0].detach(), requires_grad=False)
        assert head.bias is not None
        linear.bias = nn.Parameter(head.bias.detach(), requires_grad=False)
        module.ctc_head = linear


def call_projections(module: nn.Module) -> None:
    """Have the attentions of a WavLM call their projections; see `fedsim.speech.models.wavlm`."""
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    from fedsim.speech.models.wavlm import CalledAttention

    for child in module.modules():
        if type(child) is WavLMAttention:
            child.__class__ = CalledAttention


class GroupedConv1d(nn.Conv1d):
    """A grouped convolution that the processor computes in float32 where it is held in bfloat16.

    For few channels in a group and a wide kernel (8 and 16, for one) oneDNN's answer in bfloat16
    has nothing to do with the input, on a processor with AVX512_BF16 and torch 2.13.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolution of `input` (B, C, T), in its type."""
        if not (input.dtype == torch.bfloat16 and input.device.type == "cpu"):
            return super().forward(input)
        bias = None if self.bias is None else self.bias.float()
        padding: Any = self.padding
        how = self.stride, padding, self.dilation, self.groups
        return F.conv1d(input.float(), self.weight.float(), bias, *how).to(input.dtype)


def exact_convolutions(module: nn.Module) -> None:
    """Have the grouped convolutions of a network in bfloat16 computed by `GroupedConv1d`."""
    for child in module.modules():
        if type(child) is nn.Conv1d and child.groups > 1 and child.padding_mode == "zeros":
            child.__class__ = GroupedConv1d
