"""Whisper's decoder with keys and values as inputs and outputs, so that it can be traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Encoder(nn.Module):
    """Mel features (B, mels, frames) -> hidden states (B, L, d)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """Return the last hidden state."""
        return self.network.model.encoder(input_features).last_hidden_state


class Decoder(nn.Module):
    """Some tokens after some others: logits, and the keys and values of all tokens so far.

    Keys and values of the encoder's hidden states are those of earlier calls (C frames) and those
    of this one (L frames), each of them possibly none: a decoder that remembers gets hidden states
    of no frames. The two are not concatenated, since all of them would be copied for every token.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        input_ids: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        unseen: torch.Tensor,
        past: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Return logits (B, U, V) and for each block the keys and values of P + U tokens
        (B, H, P + U, d / H), then those of the encoder's hidden states here (B, H, L, d / H).

        Args:
            input_ids: tokens (B, U).
            encoder_hidden_states: (B, L, d).
            unseen: added to the scores of the C frames of `past` (1,): 0, or -inf to forget them.
            past: of each block keys and values of tokens (B, H, P, d / H), then of frames
                (B, H, C, d / H).
        """
        decoder = self.network.model.decoder
        n, before = input_ids.shape[1], past[0].shape[2]
        places = torch.arange(n) + before
        causal = torch.arange(n + before)[None, :] <= places[:, None]
        future = torch.where(causal, 0.0, -torch.inf)
        hidden = decoder.embed_tokens(input_ids)
        hidden = hidden + F.embedding(places, decoder.embed_positions.weight)
        presents: list[torch.Tensor] = []
        for i, block in enumerate(decoder.layers):
            own_keys, own_values, far_keys, far_values = past[4 * i : 4 * i + 4]
            x, heads = block.self_attn_layer_norm(hidden), block.self_attn
            query = _split(heads, heads.q_proj(x) * heads.scaling)
            keys = torch.cat([own_keys, _split(heads, heads.k_proj(x))], 2)
            values = torch.cat([own_values, _split(heads, heads.v_proj(x))], 2)
            shares = torch.softmax(query @ keys.transpose(2, 3) + future, -1)
            hidden = hidden + heads.out_proj(_joined(shares @ values))

            x, heads = block.encoder_attn_layer_norm(hidden), block.encoder_attn
            query = _split(heads, heads.q_proj(x) * heads.scaling)
            new_keys = _split(heads, heads.k_proj(encoder_hidden_states))
            new_values = _split(heads, heads.v_proj(encoder_hidden_states))
            scores = [query @ far_keys.transpose(2, 3) + unseen, query @ new_keys.transpose(2, 3)]
            shares, frames = torch.softmax(torch.cat(scores, -1), -1), far_keys.shape[2]
            found = shares[..., :frames] @ far_values + shares[..., frames:] @ new_values
            hidden = hidden + heads.out_proj(_joined(found))

            x = block.final_layer_norm(hidden)
            hidden = hidden + block.fc2(block.activation_fn(block.fc1(x)))
            presents += [keys, values, new_keys, new_values]
        return self.network.proj_out(decoder.layer_norm(hidden)), *presents


def _split(heads: Any, x: torch.Tensor) -> torch.Tensor:
    """Return (B, T, d) as (B, H, T, d / H)."""
    return x.unflatten(2, (heads.num_heads, heads.head_dim)).transpose(1, 2)


def _joined(x: torch.Tensor) -> torch.Tensor:
    """Return (B, H, T, d / H) as (B, T, d)."""
    return x.transpose(1, 2).flatten(2)
