"""A tiny model of every class that a family of `fedsim.speech.families` serves.

All parameters are random, those of norms and the statistics of batch norms too: what a published
checkpoint has learned is never 0 or 1, and padding hides behind these.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import toys


@dataclass(frozen=True)
class FamilyToy:
    """One model: its class, how it is made, and the files beside it."""

    name: str
    """Name of the class, then of the variant."""
    config: Callable[[], Any]
    write: Callable[[Path], None]
    """f(folder): write the feature extractor, and the tokenizer where the class has one."""
    seed: int = 3
    gain: float = 2.0

    @property
    def class_name(self) -> str:
        return self.name.partition("/")[0]

    def build(self) -> Any:
        module = toys.build(self.class_name, self.config(), self.seed, self.gain)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                if tensor.ndim == 1 and tensor.is_floating_point() and "head" not in name:
                    noise = torch.randn(tensor.shape, generator=generator)
                    tensor.copy_(tensor + 0.2 * noise if "var" not in name else 1 + noise**2)
            if hasattr(module, "ctc_head"):
                module.ctc_head.bias[1:4] = -100.0
        return module

    def save(self, folder: Path) -> Path:
        from transformers import AutoFeatureExtractor

        module = self.build()
        module.save_pretrained(folder)
        self.write(folder)
        if hasattr(module, "classifier"):  # every class is the most likely one for some clips
            extractor = AutoFeatureExtractor.from_pretrained(folder)
            with torch.no_grad():
                clips = [[clip] for clip in toys.clips([0.4] * 8, seed=9)]
                made = [extractor(c, sampling_rate=toys.RATE, return_tensors="pt") for c in clips]
                module.classifier.bias -= torch.cat([module(**m).logits for m in made]).mean(0)
            module.save_pretrained(folder)
        return folder


def _settings(**options: Any) -> dict[str, Any]:
    return {**toys.WAV2VEC2, **options}


def raw_config(name: str, **options: Any) -> Callable[[], Any]:
    """A config of wav2vec 2.0's kin, called `name` in transformers."""

    def make() -> Any:
        import transformers

        cls = getattr(transformers, f"{name}Config")
        return cls(**_settings(**options))

    return make


def bert_config(**options: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        return transformers.Wav2Vec2BertConfig(
            **_settings(
                feature_projection_input_dim=160,
                conv_depthwise_kernel_size=5,
                left_max_position_embeddings=6,
                right_max_position_embeddings=3,
                output_hidden_size=32,
                **options,
            )
        )

    return make


def parakeet_config() -> Any:
    import transformers

    encoder = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "conv_kernel_size": 5,
        "subsampling_conv_channels": 8,
        "num_mel_bins": 80,
        "max_position_embeddings": 200,
    }
    return transformers.ParakeetCTCConfig(
        vocab_size=len(toys.LETTERS), pad_token_id=0, encoder_config=encoder
    )


def write_raw(norm: str, *, letters: bool) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        from transformers import Wav2Vec2FeatureExtractor

        # As published: models with a group norm were trained without masks.
        Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(folder)
        if letters:
            toys.write_letters(folder)

    return write


def write_stacked_mel(*, letters: bool) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        from transformers import SeamlessM4TFeatureExtractor

        SeamlessM4TFeatureExtractor().save_pretrained(folder)
        if letters:
            toys.write_letters(folder)

    return write


def moonshine_config() -> Any:
    import transformers

    return transformers.MoonshineConfig(
        vocab_size=len(toys.LETTERS),
        hidden_size=32,
        intermediate_size=64,
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    )


def whisper_config(**options: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        return transformers.WhisperConfig(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            vocab_size=64,
            max_source_positions=toys.WINDOW * 50,
            classifier_proj_size=16,
            id2label=dict(enumerate(toys.CLASSES)),
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            decoder_start_token_id=1,
            suppress_tokens=None,
            begin_suppress_tokens=None,
            **options,
        )

    return make


def write_whisper(folder: Path) -> None:
    from transformers import WhisperFeatureExtractor

    WhisperFeatureExtractor(feature_size=80, chunk_length=toys.WINDOW).save_pretrained(folder)


def write_moonshine(folder: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    extractor.save_pretrained(folder)
    _write_tokenizer(folder, "PreTrainedTokenizerFast")


def write_parakeet(folder: Path) -> None:
    from transformers import ParakeetFeatureExtractor

    ParakeetFeatureExtractor().save_pretrained(folder)
    _write_tokenizer(folder, "ParakeetTokenizer")


def _write_tokenizer(folder: Path, class_name: str) -> None:
    """Write a tokenizer whose tokens are letters."""
    from tokenizers import Tokenizer, decoders, models

    letters = {("▁" if c == "|" else c): i for i, c in enumerate(toys.LETTERS)}
    tokenizer = Tokenizer(models.BPE(letters, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": class_name, "pad_token": "<pad>", "unk_token": "<unk>"}
    settings |= {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _raw(model: str, norm: str, variant: str = "", **options: Any) -> list[FamilyToy]:
    if norm:
        options["feat_extract_norm"] = norm
    config = raw_config(model, **options)
    return [
        FamilyToy(
            f"{model}{head}{variant}", config, write_raw(norm or "layer", letters=head == "ForCTC")
        )
        for head in ("ForCTC", "ForSequenceClassification")
    ]


_STABLE = {"do_stable_layer_norm": True}
_SQUEEZED = {"num_hidden_layers": 2, "squeeze_factor": 2, "hidden_size": 32}
_ALL = [
    *_raw("Wav2Vec2", "group"),
    *_raw("Wav2Vec2", "layer", "/layer norms", **_STABLE),
    *_raw("Wav2Vec2", "layer", "/adapter", **_STABLE, add_adapter=True, output_hidden_size=32)[:1],
    *_raw("Wav2Vec2", "layer", "/weighted", **_STABLE, use_weighted_layer_sum=True)[1:],
    *_raw("Wav2Vec2Conformer", "layer", conv_depthwise_kernel_size=7),
    *_raw("Wav2Vec2Conformer", "layer", "/rotary", position_embeddings_type="rotary")[:1],
    *_raw("Hubert", "group"),
    *_raw("Hubert", "layer", "/layer norms", **_STABLE),
    *_raw("Hubert", "layer", "/batch norm", conv_pos_batch_norm=True),
    *_raw("UniSpeech", "group"),
    *_raw("UniSpeech", "layer", "/layer norms", **_STABLE),
    *_raw("UniSpeechSat", "group"),
    *_raw("UniSpeechSat", "layer", "/layer norms", **_STABLE),
    *_raw("WavLM", "group"),
    *_raw("WavLM", "layer", "/layer norms", **_STABLE),
    *_raw("Data2VecAudio", "", num_conv_pos_embeddings=3, conv_pos_kernel_size=6),
    *_raw("SEW", "group", **_SQUEEZED),
    *_raw("SEW", "layer", "/layer norms", **_SQUEEZED, num_conv_pos_embeddings=15),
    *_raw("SEWD", "group", **_SQUEEZED, max_position_embeddings=64),
    *_raw("SEWD", "layer", "/layer norms", **_SQUEEZED, share_att_key=False, position_buckets=16),
    FamilyToy("Wav2Vec2BertForCTC", bert_config(), write_stacked_mel(letters=True)),
    FamilyToy(
        "Wav2Vec2BertForCTC/adapter", bert_config(add_adapter=True), write_stacked_mel(letters=True)
    ),
    FamilyToy(
        "Wav2Vec2BertForCTC/relative",
        bert_config(position_embeddings_type="relative", max_source_positions=200),
        write_stacked_mel(letters=True),
    ),
    FamilyToy(
        "Wav2Vec2BertForSequenceClassification", bert_config(), write_stacked_mel(letters=False)
    ),
    FamilyToy("WhisperForAudioClassification", whisper_config(), write_whisper),
    FamilyToy(
        "WhisperForAudioClassification/weighted",
        whisper_config(use_weighted_layer_sum=True),
        write_whisper,
    ),
    FamilyToy("MoonshineForConditionalGeneration", moonshine_config, write_moonshine, 5, 3.0),
    FamilyToy("ParakeetForCTC", parakeet_config, write_parakeet),
]
TOYS = {toy.name: toy for toy in _ALL}
