"""Train `bundled:ctc`: python -m training.ctc [FOLDER]. Start it again and it goes on.

A small wav2vec 2.0 with a CTC head, English commands and sentences, letters out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
)

from fedsim.speech.scoring import count_errors
from training import heldout
from training.augment import RATE, augment
from training.filters import mel_filters
from training.loop import Schedule, train
from training.pool import Pool, open_pool

SEED = 1
CLIPS = 40_000
BATCH = 32
SCHEDULE = Schedule(steps=5000, peak=1.2e-3)
ALIGNED_STEPS = 300
"""In the first steps, clips have one word and each frame is labelled with its letter. CTC alone
outputs only blanks for thousands of steps before it finds its first letter."""
EASY_STEPS = 1200
"""Steps until which every other batch holds one-word clips."""
_HOP = 320
"""Samples from one frame of logits to the next."""
VOCABULARY = ("<pad>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'")
CONFIG = Wav2Vec2Config(
    vocab_size=len(VOCABULARY),
    hidden_size=192,
    num_hidden_layers=6,
    num_attention_heads=4,
    intermediate_size=768,
    conv_dim=(256, 192),
    conv_kernel=(400, 3),
    conv_stride=(160, 2),
    conv_bias=True,
    num_feat_extract_layers=2,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=16,
    hidden_dropout=0.05,
    attention_dropout=0.05,
    activation_dropout=0.0,
    feat_proj_dropout=0.0,
    final_dropout=0.0,
    layerdrop=0.0,
    apply_spec_augment=True,
    mask_time_prob=0.05,
    mask_time_length=6,
    mask_feature_prob=0.0,
    ctc_loss_reduction="mean",
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=None,
)


def main(folder: Path) -> None:
    """Train, and write the checkpoint to `folder`/ctc/model."""
    torch.manual_seed(SEED)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    module = Wav2Vec2ForCTC(CONFIG)
    with torch.no_grad():
        first = module.wav2vec2.feature_extractor.conv_layers[0].conv
        first.weight.copy_(mel_filters(CONFIG.conv_dim[0], CONFIG.conv_kernel[0]))
    sentences = open_pool(folder / "pool", "sentences", CLIPS, workers=2)
    words = open_pool(folder / "pool", "words", CLIPS, workers=2)

    def loss_at(step: int) -> torch.Tensor:
        rng = np.random.default_rng([SEED, step])
        if step < ALIGNED_STEPS:
            return _aligned_loss(module, extractor, words, rng)
        easy = step < EASY_STEPS and step % 2 == 0
        return _loss(module, extractor, *_batch(words if easy else sentences, rng))

    tested = heldout.sentences(clips=100)

    def score() -> float:
        hypotheses = transcribe(module, extractor, [clip for clip, _ in tested])
        found = count_errors([text for _, text in tested], hypotheses)
        return found.errors / found.words

    train(module, loss_at, score, SCHEDULE, folder / "ctc")
    _save(module, extractor, folder / "ctc" / "model")


def _batch(pool: Pool, rng: np.random.Generator) -> tuple[list[np.ndarray], list[str]]:
    """Return a batch of clips of like length, so that little of it is padding."""
    lengths = np.diff(pool.ends, prepend=0)
    drawn = rng.integers(len(lengths), size=8 * BATCH)
    begin = rng.integers(7 * BATCH + 1)
    chosen = drawn[np.argsort(lengths[drawn])][begin : begin + BATCH]
    return [augment(pool.clip(i), rng) for i in chosen], [pool.texts[i] for i in chosen]


def _aligned_loss(
    module: Wav2Vec2ForCTC,
    extractor: Wav2Vec2FeatureExtractor,
    pool: Pool,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Return cross-entropy by frame: a word's letters share its time evenly, the rest is blank."""
    chosen = rng.integers(len(pool.texts), size=BATCH)
    clips = [pool.clip(i)[:RATE] for i in chosen]
    inputs = extractor(clips, sampling_rate=RATE, padding=True, return_tensors="pt")
    with torch.autocast("cpu", torch.bfloat16):
        logits = module(**inputs).logits
    labels = torch.zeros(logits.shape[:2], dtype=torch.long)
    for row, (i, clip) in enumerate(zip(chosen, clips, strict=True)):
        level = np.sqrt(np.mean(np.square(clip[: len(clip) // _HOP * _HOP].reshape(-1, _HOP)), 1))
        loud = np.flatnonzero(level > 0.15 * level.max())
        spelled = [VOCABULARY.index(c) for c in pool.texts[i]]
        frames = np.arange(loud[0], min(loud[-1] + 1, labels.shape[1]))
        labels[row, frames] = torch.tensor(spelled)[
            (frames - loud[0]) * len(spelled) // (loud[-1] + 1 - loud[0])
        ]
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def _loss(
    module: Wav2Vec2ForCTC,
    extractor: Wav2Vec2FeatureExtractor,
    clips: list[np.ndarray],
    texts: list[str],
) -> torch.Tensor:
    inputs = extractor(clips, sampling_rate=RATE, padding=True, return_tensors="pt")
    with torch.autocast("cpu", torch.bfloat16):
        logits = module(**inputs).logits
    labels = [torch.tensor([VOCABULARY.index(c) for c in t.replace(" ", "|")]) for t in texts]
    frames = module._get_feat_extract_output_lengths(inputs["attention_mask"].sum(-1))
    return F.ctc_loss(
        F.log_softmax(logits.float(), dim=-1).transpose(0, 1),
        torch.cat(labels),
        frames,
        torch.tensor([len(label) for label in labels]),
        blank=0,
        reduction="mean",
        zero_infinity=True,
    )


@torch.inference_mode()
def transcribe(
    module: Wav2Vec2ForCTC, extractor: Wav2Vec2FeatureExtractor, clips: list[np.ndarray]
) -> list[str]:
    """Return the greedy transcripts."""
    texts = []
    for clip in clips:
        inputs = extractor(clip, sampling_rate=RATE, return_tensors="pt")
        best = module(inputs["input_values"]).logits[0].argmax(-1).unique_consecutive()
        texts.append("".join(VOCABULARY[i] for i in best if i > 1).replace("|", " ").strip())
    return texts


def _save(module: Wav2Vec2ForCTC, extractor: Wav2Vec2FeatureExtractor, folder: Path) -> None:
    import json

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({t: i for i, t in enumerate(VOCABULARY)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary), bos_token=None, eos_token=None)
    tokenizer.save_pretrained(folder)
    extractor.save_pretrained(folder)
    module.eval().half().save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "~/.cache/fedsim/training").expanduser())
