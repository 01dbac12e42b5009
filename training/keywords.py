"""Train `bundled:keywords`: python -m training.keywords [FOLDER]. Start it again and it goes on.

A small wav2vec 2.0 Conformer that names one of the 35 words of Speech Commands.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForSequenceClassification,
    Wav2Vec2FeatureExtractor,
)

from fedsim.speech.voices.sentences import WORDS
from training import heldout
from training.augment import RATE, augment
from training.filters import mel_filters
from training.loop import Schedule, train
from training.pool import Pool, open_pool

SEED = 2
CLIPS = 40_000
BATCH = 64
SCHEDULE = Schedule(steps=4000, peak=2.0e-3)
CONFIG = Wav2Vec2ConformerConfig(
    vocab_size=len(WORDS),
    hidden_size=80,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=320,
    conv_dim=(128, 80),
    conv_kernel=(400, 3),
    conv_stride=(160, 2),
    conv_bias=True,
    num_feat_extract_layers=2,
    feat_extract_norm="layer",
    position_embeddings_type="relative",
    conv_depthwise_kernel_size=15,
    conformer_conv_dropout=0.05,
    hidden_dropout=0.05,
    attention_dropout=0.05,
    activation_dropout=0.0,
    feat_proj_dropout=0.0,
    final_dropout=0.0,
    layerdrop=0.0,
    apply_spec_augment=True,
    mask_time_prob=0.08,
    mask_time_length=5,
    mask_feature_prob=0.0,
    classifier_proj_size=80,
    num_labels=len(WORDS),
    id2label=dict(enumerate(WORDS)),
    label2id={word: i for i, word in enumerate(WORDS)},
)


def main(folder: Path) -> None:
    """Train, and write the checkpoint to `folder`/keywords/model."""
    torch.manual_seed(SEED)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    module = Wav2Vec2ConformerForSequenceClassification(CONFIG)
    with torch.no_grad():
        first = module.wav2vec2_conformer.feature_extractor.conv_layers[0].conv
        first.weight.copy_(mel_filters(CONFIG.conv_dim[0], CONFIG.conv_kernel[0]))
    pool = open_pool(folder / "pool", "words", CLIPS, workers=2)

    def loss_at(step: int) -> torch.Tensor:
        clips, labels = _batch(pool, np.random.default_rng([SEED, step]))
        inputs = extractor(clips, sampling_rate=RATE, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            logits = module(**inputs).logits
        return F.cross_entropy(logits.float(), labels, label_smoothing=0.1)

    tested = heldout.words(clips=350)

    def score() -> float:
        found = classify(module, extractor, [clip for clip, _ in tested])
        return float(np.mean([word == text for word, (_, text) in zip(found, tested, strict=True)]))

    train(module, loss_at, score, SCHEDULE, folder / "keywords")
    save(module, extractor, folder / "keywords" / "model")


def _batch(pool: Pool, rng: np.random.Generator) -> tuple[list[np.ndarray], torch.Tensor]:
    """Return clips of one length, 0.7 to 1.2 s: cut or filled at both ends."""
    chosen = rng.integers(len(pool.texts), size=BATCH)
    size = int(RATE * rng.uniform(0.7, 1.2))
    clips = [_fit(augment(pool.clip(i), rng), size, rng) for i in chosen]
    return clips, torch.tensor([WORDS.index(pool.texts[i]) for i in chosen])


def _fit(clip: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    if len(clip) > size:  # the word is where the sound is: keep the loudest stretch
        energy = np.concatenate([[0.0], np.cumsum(np.square(clip, dtype=np.float64))])
        start = int(np.argmax(energy[size:] - energy[:-size]))
        return clip[start : start + size]
    before = int(rng.integers(size - len(clip) + 1))
    return np.pad(clip, (before, size - len(clip) - before))


@torch.inference_mode()
def classify(
    module: Wav2Vec2ConformerForSequenceClassification,
    extractor: Wav2Vec2FeatureExtractor,
    clips: list[np.ndarray],
) -> list[str]:
    """Return the most likely word of each clip."""
    words = []
    for clip in clips:
        inputs = extractor(clip, sampling_rate=RATE, return_tensors="pt")
        words.append(WORDS[int(module(inputs["input_values"]).logits[0].argmax())])
    return words


def save(
    module: Wav2Vec2ConformerForSequenceClassification,
    extractor: Wav2Vec2FeatureExtractor,
    folder: Path,
) -> None:
    """Write the checkpoint in the transformers layout, 16-bit floats."""
    extractor.save_pretrained(folder)
    module.eval().half().save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "~/.cache/fedsim/training").expanduser())
