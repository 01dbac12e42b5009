"""Tiny speech models, clips and corpora: real architectures with seeded random weights."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paper
import soundfile
import torch

RATE = 16_000
LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'")
"""The vocabulary of the CTC toys; `<pad>` is the blank, `|` the space."""
CLASSES = ("yes", "no", "stop", "go")
LANGUAGES = ("en", "zh", "de", "fr", "it")
SPEAKERS = ("ann", "bob", "cyd", "dee", "eve")
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "left", "right")
WINDOW = 4
"""Seconds of audio that the toy Whisper takes."""
METHODS: list[Any] = [
    "fp32",
    {"allocation": "uniform", "calibration": ["none", "minmax"]},
    {
        "allocation": "myqasr",
        "calibration": ["minmax", "cosine", "none", "hessian"],
        "tuned_on": ["own", "other", "each"],
    },
    {"allocation": "myqasr", "order": "ascending"},
    {"allocation": "shuffled", "draws": 2},
    {"allocation": "shuffled", "calibration": ["none"]},
    {"allocation": "reversed", "calibration": ["cosine", "none"]},
    {"allocation": "linear", "tuned_on": ["own", "other"]},
]
"""Every allocator, calibration and source that a scenario may name."""


def clip(seconds: float, seed: int = 0) -> np.ndarray:
    """A gliding tone with overtones, a rhythm and some noise: float32 (samples,) at 16 kHz."""
    rng = np.random.default_rng([seed, 1])
    t = np.arange(round(seconds * RATE)) / RATE
    pitch = rng.uniform(90, 300) * (1 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.5, 3) * t))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 12))
    rhythm = 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(2, 6) * t)
    return (0.1 * voice * rhythm + 0.01 * rng.standard_normal(t.size)).astype(np.float32)


def clips(lengths: Iterable[float], seed: int = 0) -> list[np.ndarray]:
    """One clip for each length in seconds."""
    return [clip(s, 1000 * seed + i) for i, s in enumerate(lengths)]


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str = "FLOAT") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)


def write_metadata(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write metadata.csv with the columns of the first row."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_corpus(
    folder: Path,
    speakers: Sequence[str] = SPEAKERS,
    each: int = 6,
    languages: Sequence[str] = ("en",),
    read: Callable[[list[np.ndarray], str], list[str]] | None = None,
) -> Path:
    """Write an AudioFolder: `each` clips of 0.3 to 0.6 s for every speaker.

    `read` gives the texts of a speaker's clips, such as a model's own transcripts; by default they
    are lists of words.
    """
    rng = np.random.default_rng(0)
    rows = []
    for s, speaker in enumerate(speakers):
        language = languages[s % len(languages)]
        spoken = [clip(rng.uniform(0.3, 0.6), 100 * s + i) for i in range(each)]
        texts = [" ".join(rng.choice(WORDS, 2)) for _ in spoken]
        if read is not None:
            texts = read(spoken, language)
        for i, (samples, text) in enumerate(zip(spoken, texts, strict=True)):
            name = f"{speaker}/{i}.wav"
            write_wav(folder / name, samples)
            row = {"file_name": name, "speaker": speaker, "gender": ("male", "female")[s % 2]}
            rows.append({**row, "language": language, "text": text})
    write_metadata(folder, rows)
    return folder


def write_scenario(path: Path, **sections: Any) -> Path:
    """Write a scenario file of the toys, `sections` in place of or beside the usual ones.

    Weights are rounded to nearest unless `quantization` says otherwise: no public clips are made.
    """
    import yaml

    settings: dict[str, Any] = {
        "name": "toy",
        "seed": 3,
        "methods": ["fp32"],
        "engine": {"kind": "inprocess"},
    }
    chosen = {**paper.QUANTIZATION, **sections.pop("quantization", {})}
    settings |= {**sections, "quantization": chosen}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def build(name: str, config: Any, seed: int, gain: float) -> Any:
    """Make the network of that class, with weights so large that its answers depend on the clip."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = getattr(transformers, name)(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim > 1:
                fan_in = p[0].numel()
                p.copy_(torch.randn(p.shape, generator=generator) * gain / fan_in**0.5)
        if hasattr(module, "lm_head"):
            module.lm_head.bias[1:4] = -100.0  # no <s>, </s> and <unk> among the letters
            module.lm_head.bias[4] = 1.0  # and some spaces
    return module.eval()


WAV2VEC2 = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16, 16),
    "conv_kernel": (10, 8, 4, 4),
    "conv_stride": (5, 4, 4, 4),
    "num_feat_extract_layers": 4,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": len(LETTERS),
    "pad_token_id": 0,
    "classifier_proj_size": 16,
    "id2label": dict(enumerate(CLASSES)),
}


def wav2vec2(norm: str = "group", *, seed: int = 1, head: str = "ForCTC", **options: Any) -> Any:
    """A Wav2Vec2 of 19 layers and 26,000 weights; `norm` is its feat_extract_norm."""
    import transformers

    settings = {**WAV2VEC2, "feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer"}
    config = transformers.Wav2Vec2Config(**{**settings, **options})
    module = build(f"Wav2Vec2{head}", config, seed, gain=1.5)
    return _undecided(module) if head == "ForSequenceClassification" else module


def conformer(*, seed: int = 1, head: str = "ForCTC", **options: Any) -> Any:
    """A Wav2Vec2Conformer, with a CTC head or `head="ForSequenceClassification"`."""
    import transformers

    settings = {**WAV2VEC2, "feat_extract_norm": "layer", "conv_depthwise_kernel_size": 7}
    config = transformers.Wav2Vec2ConformerConfig(**{**settings, **options})
    module = build(f"Wav2Vec2Conformer{head}", config, seed, gain=2.0)
    return _undecided(module) if head == "ForSequenceClassification" else module


def _undecided(module: Any) -> Any:
    """Shift a classifier's biases so that every class is the most likely one for some clips."""
    with torch.no_grad():
        logits = [module(torch.from_numpy(c)[None]).logits[0] for c in clips([0.4] * 8, seed=9)]
        module.classifier.bias -= torch.stack(logits).mean(0)
    return module


def whisper(*, seed: int = 0, multilingual: bool = True, **options: Any) -> Any:
    """A Whisper of two and two blocks, whose encoder takes 4 s, over the bytes and a few tokens."""
    import transformers

    special = whisper_special(multilingual)
    end, start = special["<|endoftext|>"], special["<|startoftranscript|>"]
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    config = transformers.WhisperConfig(
        **{
            "vocab_size": 256 + len(special),
            "num_mel_bins": 80,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_source_positions": WINDOW * 50,
            "max_target_positions": 80,
            "decoder_start_token_id": start,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
            **ids,
            **options,
        }
    )
    module = build("WhisperForConditionalGeneration", config, seed, gain=2.0)
    rules = {
        "is_multilingual": multilingual,
        "no_timestamps_token_id": special["<|notimestamps|>"],
        "suppress_tokens": [1, 2, 7, special["<|startofprev|>"]],
        "begin_suppress_tokens": [220, end],
        "decoder_start_token_id": start,
        "max_length": config.max_target_positions,
        "return_timestamps": False,
        **ids,
    }
    if multilingual:
        rules["lang_to_id"] = {f"<|{code}|>": special[f"<|{code}|>"] for code in LANGUAGES}
        rules["task_to_id"] = {t: special[f"<|{t}|>"] for t in ("transcribe", "translate")}
    module.generation_config = transformers.GenerationConfig(**rules)
    return module


def whisper_special(multilingual: bool = True) -> dict[str, int]:
    """The special tokens of the toy Whisper, in the order of the real one."""
    names = ["<|endoftext|>", "<|startoftranscript|>"]
    if multilingual:
        names += [f"<|{code}|>" for code in LANGUAGES] + ["<|translate|>", "<|transcribe|>"]
    names += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    return {name: 256 + i for i, name in enumerate(names)}


def save(module: Any, folder: Path, *, half: bool = False) -> Path:
    """Write a toy as a folder in the transformers layout, with processor and tokenizer files."""
    from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

    if half:
        module = module.half()
    module.save_pretrained(folder)
    if module.config.model_type == "whisper":
        WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW).save_pretrained(folder)
        multilingual = module.generation_config.is_multilingual
        _write_whisper_tokenizer(folder, whisper_special(multilingual))
    else:
        Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
        if type(module).__name__.endswith("ForCTC"):
            write_letters(folder)
    return folder


def write_letters(folder: Path) -> None:
    vocabulary = {letter: i for i, letter in enumerate(LETTERS)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    settings = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "word_delimiter_token": "|",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _write_whisper_tokenizer(folder: Path, special: dict[str, int]) -> None:
    """A byte-level tokenizer without merges: 256 bytes, then the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    end = "<|endoftext|>"
    settings = {
        "tokenizer_class": "WhisperTokenizer",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "unk_token": end,
        "additional_special_tokens": list(special),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


MODELS: dict[str, Callable[[], Any]] = {
    "ctc-group": wav2vec2,
    "ctc-layer": lambda: wav2vec2("layer"),
    "conformer": conformer,
    "classifier": lambda: conformer(head="ForSequenceClassification"),
    "classifier-layer": lambda: wav2vec2("layer", head="ForSequenceClassification"),
    "whisper": whisper,
    "whisper-english": lambda: whisper(multilingual=False),
}
"""The toys by name; `model_folder` writes them, `speech` loads them."""
