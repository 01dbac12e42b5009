"""The families of speech models that fedsim can run, and what sets one apart from another.

Nothing here imports torch: families are listed, and a plug-in's is found, without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedsim.errors import FedsimError, misspelled
from fedsim.registry import Lazy, Registry


@dataclass(frozen=True)
class ModelFamily:
    """Models that one adapter serves: their classes in transformers, and how they are loaded."""

    adapt: Callable[..., Any]
    """f(id, network, layers, feature extractor, tokenizer or None, batch size, settings) ->
    `fedsim.speech.models.base.SpeechModel`; `FedsimError` for a variant it does not support."""
    classes: tuple[str, ...]
    """Names under `architectures` in config.json, each a class of transformers."""
    summary: str
    keep: tuple[str, ...] = ()
    """Layers that stay in half precision, as names or patterns; those that a variant lacks do not
    matter."""
    shorten: Callable[[Any, float], None] | None = None
    """f(network, seconds): cut the encoder's window, in place; None where clips may have any
    length."""
    default_extractor: Callable[[bool], Any] | None = None
    """f(normalize): makes the feature extractor of a checkpoint that has lost its own, where
    model.normalize stands in for it; None where each must have one."""
    prepare: Callable[[Any], None] | None = None
    """f(network): called before its layers are looked up; a second call changes nothing."""
    choose_language: Callable[[Any, Any, str | None, str], None] | None = None
    """f(network, tokenizer, model.target_lang, id): load one language's weights and vocabulary, in
    place; None for a family whose models have one set of weights."""
    languages: Callable[[Any, Callable[[], Any]], tuple[str, ...]] | None = None
    """f(config, f() -> tokenizer): the languages that `choose_language` takes, the model's own
    first; empty for a model with one set of weights."""
    optional_weights: tuple[str, ...] = ()
    """Ends of the names of weights that a checkpoint may lack."""
    audio: str = ""
    """What the network takes, and which clips may share a batch; for `docs/models.md`."""
    tested_with: str = ""
    """Classes and sizes that the tests run; for `docs/models.md`."""
    not_supported: str = ""
    """Which variants are not supported, and why; for `docs/models.md`."""

    @property
    def has_window(self) -> bool:
        """Whether the encoder takes a window of fixed length, which model.window_s shortens."""
        return self.shorten is not None


FAMILIES: Registry[ModelFamily] = Registry("model family")


def _heads(model: str) -> tuple[str, ...]:
    """Return the classes of an encoder that transformers has with both heads."""
    return f"{model}ForCTC", f"{model}ForSequenceClassification"


def _encoder(name: str, adapter: str, classes: tuple[str, ...], **fields: Any) -> None:
    """Add a family of encoders, whose adapter is called `adapter` in
    `fedsim.speech.models.encoder`."""
    raw = adapter.startswith("raw")
    family = ModelFamily(
        Lazy(f"fedsim.speech.models.encoder:{adapter}"),
        classes,
        default_extractor=Lazy("fedsim.speech.models.encoder:default_extractor") if raw else None,
        optional_weights=("masked_spec_embed",),  # serves pretraining only
        **fields,
    )
    FAMILIES.add(name, family)


_MASKED = "samples; a batch pads, with `feat_extract_norm: group` it does not"
_ALONE = "samples; a batch holds clips of one length"
_BOTH_NORMS = "random weights, group and layer norms"
_encoder(
    "wav2vec2",
    "raw",
    _heads("Wav2Vec2"),
    summary="wav2vec 2.0, XLS-R and MMS, with a CTC head or a classifier.",
    choose_language=Lazy("fedsim.speech.models.mms:choose_language"),
    languages=Lazy("fedsim.speech.models.mms:languages_of"),
    audio=_MASKED,
    tested_with=f"{_BOTH_NORMS}, strided adapter, weighted layer sum, MMS; the bundled model",
    not_supported="MMS by client language: activation ranges or rounded layers of another client's"
    " model (`tuned_on`), which fit its language only.",
)
_encoder(
    "wav2vec2-conformer",
    "raw_alone",
    _heads("Wav2Vec2Conformer"),
    summary="wav2vec 2.0 with Conformer blocks.",
    prepare=Lazy("fedsim.speech.models.prepare:drop_unused"),
    audio=_ALONE,
    tested_with="random weights, rotary and relative positions; the bundled model",
)
_encoder(
    "hubert",
    "raw",
    _heads("Hubert"),
    summary="HuBERT, whose layers are those of wav2vec 2.0.",
    audio=_MASKED,
    tested_with=f"{_BOTH_NORMS}, batch norm before the positional convolution",
)
_encoder(
    "unispeech",
    "raw",
    _heads("UniSpeech"),
    summary="UniSpeech, whose layers are those of wav2vec 2.0.",
    audio=_MASKED,
    tested_with=_BOTH_NORMS,
)
_encoder(
    "unispeech-sat",
    "raw",
    _heads("UniSpeechSat"),
    summary="UniSpeech-SAT, whose layers are those of wav2vec 2.0.",
    audio=_MASKED,
    tested_with=_BOTH_NORMS,
)
_encoder(
    "wavlm",
    "raw",
    _heads("WavLM"),
    summary="WavLM, whose attentions have a gated position bias.",
    prepare=Lazy("fedsim.speech.models.prepare:call_projections"),
    audio=_MASKED,
    tested_with=_BOTH_NORMS,
)
_encoder(
    "data2vec-audio",
    "raw_alone",
    _heads("Data2VecAudio"),
    summary="data2vec for audio, with a stack of positional convolutions.",
    audio=_ALONE,
    tested_with="random weights, three positional convolutions",
)
_encoder(
    "sew",
    "raw_alone",
    _heads("SEW"),
    summary="SEW, which squeezes frames before its blocks.",
    audio=_ALONE,
    tested_with=_BOTH_NORMS,
)
_encoder(
    "sew-d",
    "raw_alone",
    _heads("SEWD"),
    summary="SEW-D: SEW with disentangled attention.",
    keep=("*.rel_embeddings",),  # read as a table, never called
    audio=_ALONE,
    tested_with=f"{_BOTH_NORMS}, shared and separate position projections",
)
_encoder(
    "wav2vec2-bert",
    "stacked_mel",
    _heads("Wav2Vec2Bert"),
    summary="Wav2Vec2-BERT, with a CTC head or a classifier.",
    audio="mel frames in pairs; a batch pads, with `add_adapter` it does not",
    tested_with="random weights, strided adapter, `relative_key` and `relative` positions",
)
_encoder(
    "parakeet-ctc",
    "mel",
    ("ParakeetForCTC",),
    summary="Parakeet (FastConformer) with a CTC head.",
    prepare=Lazy("fedsim.speech.models.prepare:linear_head"),
    audio="mel frames; a batch pads",
    tested_with="random weights",
    not_supported="Transducers (`ParakeetForTDT`, `ParakeetForRNNT`): their decoders have no"
    " adapter. Two-dimensional convolutions of more than 65,536 weights: no quantizer for them;"
    " smaller ones stay in half precision.",
)
FAMILIES.add(
    "whisper",
    ModelFamily(
        Lazy("fedsim.speech.models.whisper:adapt"),
        classes=("WhisperForConditionalGeneration",),
        summary="Whisper: an encoder over a fixed window of audio, a decoder over tokens.",
        # Tables that are added, not multiplied with.
        keep=("model.encoder.embed_positions", "model.decoder.embed_positions"),
        shorten=Lazy("fedsim.speech.models.window:shorten"),
        audio="mel frames of a window, 30 s or `model.window_s`; a batch pads",
        tested_with="random weights, multilingual and English-only",
        not_supported="Clips longer than the window, timestamps, translation.",
    ),
)
FAMILIES.add(
    "whisper-classifier",
    ModelFamily(
        Lazy("fedsim.speech.models.whisper_classifier:adapt"),
        classes=("WhisperForAudioClassification",),
        summary="Whisper's encoder with a classifier.",
        keep=("encoder.embed_positions",),
        shorten=Lazy("fedsim.speech.models.window:shorten"),
        audio="mel frames of a window, 30 s or `model.window_s`; a batch pads",
        tested_with="random weights, weighted layer sum",
        not_supported="Clips longer than the window.",
    ),
)
FAMILIES.add(
    "moonshine",
    ModelFamily(
        Lazy("fedsim.speech.models.moonshine:adapt"),
        classes=("MoonshineForConditionalGeneration",),
        summary="Moonshine: a small encoder of raw audio, a decoder over tokens.",
        audio=_ALONE,
        tested_with="random weights",
        not_supported="Streaming Moonshine (another class); `model.vocabulary`, which knows the"
        " byte-level tokens of Whisper only.",
    ),
)


def family_of(class_name: str, model: str) -> ModelFamily:
    """Return the family that a class of transformers belongs to.

    Raises `FedsimError`, which names the model, for a class that no family has.
    """
    known = {name: FAMILIES[family] for family in FAMILIES for name in FAMILIES[family].classes}
    if class_name in known:
        return known[class_name]
    meant = misspelled(class_name, known)
    if meant is not None:
        raise FedsimError(
            f"model {model!r} is a {class_name}, which is not a class of transformers; did you mean"
            f" {meant!r}? Correct architectures in its config.json"
        )
    encoder = class_name.partition("For")[0].removesuffix("Model")
    heads = [name for name in known if name.partition("For")[0] == encoder]
    heads_hint = f" of these models fedsim runs {' and '.join(heads)};" if heads else ""
    raise FedsimError(
        f"model {model!r} is a {class_name}, for which fedsim has no family;{heads_hint} choose a"
        f" model of a family that it has ({', '.join(FAMILIES)}), or add one by a plug-in: an"
        f" adapter under the entry point fedsim.model_family (docs/models.md)"
    )
