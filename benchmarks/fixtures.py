"""Models and clips that several benchmarks share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedsim.base.paths import cache_dir
from fedsim.errors import FedsimError
from fedsim.scenario.clients import ClientSettings
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.clips import read_utterance
from fedsim.speech.corpus import open_clients
from fedsim.speech.models import load_model, wrap_model
from fedsim.speech.models.base import SpeechModel

WINDOW_S = 10.0


def whisper_base(window_s: float | None = WINDOW_S) -> SpeechModel:
    """Return Whisper base from the cache; raises `FedsimError`, with the command to get it, if it
    is missing."""
    folder = cache_dir() / "whisper-base"
    if not folder.is_dir():
        raise FedsimError(f"{folder} is missing; run: python -m benchmarks.real_speech")
    return load_model(folder, window_s=window_s, device="cpu")


def prompts(
    language: str, tuning: int, test: int, max_seconds: float = WINDOW_S
) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """Return tuning clips, test clips and test references of one language of the real prompts."""
    corpus = CorpusSettings(
        path=str(cache_dir() / "prompts"),
        group_by="language",
        tuning_clips=tuning,
        test_clips=test,
        max_seconds=max_seconds,
    )
    client = open_clients(corpus, ClientSettings(select=(language,), budget_mb=1), 7)[language]
    clips = [[read_utterance(u) for u in part] for part in (client.tuning, client.test)]
    return clips[0], clips[1], [u.text or "" for u in client.test]


def small_wav2vec2(seed: int = 0) -> SpeechModel:
    """Return a wav2vec2 of 44 quantizable layers and 3.1 M parameters with seeded random weights.

    The layers are seven convolutions, a projection and six blocks of six; the positional
    convolution and the CTC head stay in full precision.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    torch.manual_seed(seed)
    config = Wav2Vec2Config(
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=768,
        conv_dim=(160,) * 7,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        vocab_size=32,
    )
    module = Wav2Vec2ForCTC(config).float()
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    keep = ("*pos_conv_embed.conv", "lm_head")
    return wrap_model(module, extractor, _Letters(), keep=keep, batch_size=16)


class _Letters:
    """Stands in for a tokenizer: nobody reads the transcripts of random weights."""

    def batch_decode(self, rows: Any) -> list[str]:
        """Return one text of letters per row."""
        return ["".join(chr(97 + i % 26) for i in row) for row in rows]


def noise(n: int, seconds: float, seed: int = 0) -> list[np.ndarray]:
    """Return `n` clips of seeded noise with a syllable rhythm (float32, 16 kHz)."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * 16_000)) / 16_000
    clips = []
    for _ in range(n):
        tone = np.sin(2 * np.pi * rng.uniform(90, 260) * t + rng.uniform(0, 6))
        rhythm = 0.5 - 0.5 * np.cos(2 * np.pi * rng.uniform(3, 6) * t)
        clips.append((0.1 * (tone + 0.3 * rng.standard_normal(t.size)) * rhythm).astype(np.float32))
    return clips
