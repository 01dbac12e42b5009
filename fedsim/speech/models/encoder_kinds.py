"""What sets one kind of audio encoder apart: its features, its frames, and whether it may pad.

A batch may hold clips of different lengths where the padding, masked, changes no logit. It does
change them where statistics are taken over time (a group norm), where a convolution sees padding
that is no longer zero (an unmasked depthwise convolution, a stack of positional convolutions, a
norm with an offset before one), and where frames are pooled in pairs (SEW): there, the clips of a
batch are of one length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fedsim.quant.layers import Layer
from fedsim.speech.audio import SAMPLE_RATE

Frames = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
"""Layer name -> frames of each clip (B,) that count, in the layer's input and in its output."""


@dataclass(frozen=True)
class EncoderKind:
    """How one kind of encoder takes audio, and how it counts frames."""

    pads: Callable[[Any], bool]
    """f(config): whether clips of different lengths may share a batch."""
    features: Callable[[Any, Sequence[np.ndarray], int], dict[str, torch.Tensor]]
    """f(feature extractor, clips, grain) -> the keyword arguments of the network, the clips padded
    to a multiple of `grain` samples."""
    frames: Callable[[Any, Sequence[Layer], torch.Tensor, dict[str, torch.Tensor]], Frames]
    """f(config, layers, samples of each clip (B,), keyword arguments) -> the frames of the layers
    of which not all count. The head of a CTC model is among them where its padding is masked."""


# Raw audio.


def raw_features(
    extractor: Any, clips: Sequence[np.ndarray], grain: int
) -> dict[str, torch.Tensor]:
    """Return samples, and a mask if there is padding."""
    lengths = np.array([len(clip) for clip in clips])
    padded = bool((lengths != -(-lengths.max() // grain) * grain).any())
    inputs = extractor(
        list(clips),
        sampling_rate=SAMPLE_RATE,
        padding=True,
        pad_to_multiple_of=grain,
        return_attention_mask=padded,
        return_tensors="pt",
    )
    features = {"input_values": inputs["input_values"].float()}
    return features | ({"attention_mask": inputs["attention_mask"]} if padded else {})


def raw_frames(
    config: Any, layers: Sequence[Layer], lengths: torch.Tensor, inputs: dict[str, torch.Tensor]
) -> Frames:
    """Count frames behind a stack of convolutions without padding."""
    frames = [lengths]
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        frames.append((frames[-1] - kernel) // stride + 1)
    # Positional convolutions: an even kernel gives one frame too many, and SEW's, whose stride is
    # its squeeze factor, up to one more than there are pooled frames; what is over is cut off.
    last = frames[-1]
    squeezed = last // getattr(config, "squeeze_factor", 1)
    if "attention_mask" not in inputs:
        return {}, {a.name: squeezed for a in layers if "pos_conv_embed" in a.name}
    by_head = last * config.num_attention_heads
    into, out = {}, {}
    for layer in layers:
        stage = _conv_stage(layer.name)
        if stage is not None:
            into[layer.name], out[layer.name] = frames[stage], frames[stage + 1]
        elif layer.name.endswith("gru_rel_pos_linear"):
            into[layer.name] = out[layer.name] = by_head
        elif _has_frames(layer):
            into[layer.name] = out[layer.name] = last
    return into, out


def _conv_stage(name: str) -> int | None:
    """Return the number of a layer among the feature extractor's convolutions; None for others."""
    marker = "feature_extractor.conv_layers."
    return int(name.split(marker)[1].split(".")[0]) if marker in name else None


def _has_frames(layer: Layer) -> bool:
    """Return whether a layer's output has one row per frame.

    Relative positions are the same for all clips; the final classifier gets one vector per clip.
    """
    relative = layer.name.endswith(("linear_pos", "relative_k_proj"))
    return not relative and layer.kind != "embedding" and layer.name != "classifier"


def _by_layer_norm(config: Any) -> bool:
    strided = getattr(config, "add_adapter", False)
    shifted = getattr(config, "conv_pos_batch_norm", False)  # HuBERT: zeros before it, not behind
    return config.feat_extract_norm == "layer" and not strided and not shifted


def _never(config: Any) -> bool:
    return False


RAW = EncoderKind(_by_layer_norm, raw_features, raw_frames)
"""wav2vec 2.0 and its kin: padding is masked behind a front with layer norms, not behind one whose
first convolution has a group norm (the base models, `feat_extract_norm: group`)."""
RAW_ALONE = replace(RAW, pads=_never)
"""Those in which padding reaches the speech, whatever the front."""


# The mel spectrogram of SeamlessM4T, two frames in one.

MEL_WINDOW, MEL_HOP = 400, 160


def stacked_mel_features(
    extractor: Any, clips: Sequence[np.ndarray], grain: int
) -> dict[str, torch.Tensor]:
    """Return pairs of mel frames and their mask, which leaves out half a pair."""
    inputs = extractor(
        list(clips),
        sampling_rate=SAMPLE_RATE,
        padding=True,
        pad_to_multiple_of=max(1, grain // (2 * MEL_HOP)) * 2,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return {
        "input_features": inputs["input_features"].float(),
        "attention_mask": inputs["attention_mask"].long(),
    }


def stacked_mel_frames(
    config: Any, layers: Sequence[Layer], lengths: torch.Tensor, inputs: dict[str, torch.Tensor]
) -> Frames:
    """Count the frames that each clip has alone: half a pair, though masked, has one."""
    mel = (lengths - MEL_WINDOW) // MEL_HOP + 1
    frames = (mel + 1) // 2
    if bool((frames == inputs["input_features"].shape[1]).all()):
        return {}, {}
    context = frames + config.conv_depthwise_kernel_size - 1  # to the left: it is causal
    into, out = {}, {}
    for layer in layers:
        if _has_frames(layer):
            causal = layer.name.endswith("depthwise_conv")
            into[layer.name], out[layer.name] = context if causal else frames, frames
    return into, out


def _without_adapter(config: Any) -> bool:
    return not getattr(config, "add_adapter", False)


STACKED_MEL = EncoderKind(_without_adapter, stacked_mel_features, stacked_mel_frames)
"""Wav2Vec2-BERT, whose convolutions are causal and masked."""


# The mel spectrogram of NeMo, subsampled by two-dimensional convolutions.


def mel_features(
    extractor: Any, clips: Sequence[np.ndarray], grain: int
) -> dict[str, torch.Tensor]:
    """Return mel frames and their mask; the last frame of a clip never counts."""
    inputs = extractor(
        list(clips), sampling_rate=SAMPLE_RATE, pad_to_multiple_of=grain, return_tensors="pt"
    )
    return {
        "input_features": inputs["input_features"].float(),
        "attention_mask": inputs["attention_mask"],
    }


def mel_frames(
    config: Any, layers: Sequence[Layer], lengths: torch.Tensor, inputs: dict[str, torch.Tensor]
) -> Frames:
    """Count the frames behind the convolutions, each of which masks what is behind the clip."""
    encoder = config.encoder_config
    frames, factor = inputs["attention_mask"].sum(dim=1), 1
    padding = (encoder.subsampling_conv_kernel_size - 1) // 2
    while factor < encoder.subsampling_factor:
        frames = frames + 2 * padding - encoder.subsampling_conv_kernel_size
        frames = frames // encoder.subsampling_conv_stride + 1
        factor *= 2
    counts = {layer.name: frames for layer in layers if _has_frames(layer)}
    return counts, counts


def _always(config: Any) -> bool:
    return True


MEL = EncoderKind(_always, mel_features, mel_frames)
"""Parakeet (FastConformer)."""
