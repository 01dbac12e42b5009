"""The attention of WavLM, computed by its own layers.

transformers hands the weights of query, key, value and output to
`torch.nn.functional.multi_head_attention_forward`: the layers are never called, so that what they
receive cannot be observed, nor quantized.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.wavlm.modeling_wavlm import WavLMAttention


class CalledAttention(WavLMAttention):
    """`WavLMAttention` that calls its four projections, with the same output."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        index: int = 0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Return the attended values (B, T, C), no weights, and the position bias (H, T, T).

        `attention_mask` (B, T) is 1 where a frame counts; `position_bias` is that of the first
        layer, None in it.
        """
        batch, frames, _ = hidden_states.shape
        heads = (batch, frames, self.num_heads, self.head_dim)
        if position_bias is None:
            position_bias = self.compute_bias(frames, frames)
        # One row per frame and head, frame by frame: those of padding come last.
        rows = hidden_states.reshape(batch, frames * self.num_heads, self.head_dim)
        gates = self.gru_rel_pos_linear(rows).view(*heads[:3], 2, 4).sum(-1).transpose(1, 2)
        gate_a, gate_b = torch.sigmoid(gates).chunk(2, dim=-1)  # (B, H, T, 1)
        scale = gate_a * (gate_b * self.gru_rel_pos_const - 1.0) + 2.0
        bias = scale * position_bias
        if attention_mask is not None:
            bias = bias.masked_fill(attention_mask.ne(1)[:, None, None], -torch.inf)
        query, key, value = (
            layer(hidden_states).view(heads).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        output = self.out_proj(attended.transpose(1, 2).reshape(batch, frames, self.embed_dim))
        return output, None, position_bias
