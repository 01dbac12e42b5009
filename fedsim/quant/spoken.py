"""Which elements of a layer's output are speech: those of the frames that count of each clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def speech(
    conv: bool, out: torch.Tensor, counts: Sequence[int] | None, copied: np.ufunc
) -> np.ndarray:
    """Return the elements that are speech, clip by clip, (n,); a copy, as `out` may be reused.

    `out` is on the processor, (B, C, T) of a convolution and else (B, T, C), of which the first
    `counts[b]` frames of clip b count; `copied` copies it.
    """
    values = out.numpy()
    if counts is None:
        return copied(values.reshape(-1))
    clips = [values[b, :, :n] if conv else values[b, :n] for b, n in enumerate(counts)]
    kept, begin = np.empty(sum(clip.size for clip in clips), values.dtype), 0
    for clip in clips:
        copied(clip, out=kept[begin : begin + clip.size].reshape(clip.shape))
        begin += clip.size
    return kept


def speech_places(
    conv: bool, shape: torch.Size, counts: Sequence[int] | None, index: np.ndarray
) -> np.ndarray:
    """Turn places among the elements that are speech into flat indices into the padded output."""
    if counts is None:
        return index
    per_frame, length = (shape[1], shape[2]) if conv else (shape[-1], shape[1])
    frames = np.asarray(counts)
    ends = np.cumsum(frames) * per_frame
    clip = np.searchsorted(ends, index, side="right")
    local = index - (ends - frames * per_frame)[clip]
    if conv:  # (B, C, T): speech is the first part of each channel's row
        channel, t = np.divmod(local, frames[clip])
        local = channel * length + t
    return clip * (per_frame * length) + local
