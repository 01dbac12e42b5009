"""The families of speech models that fedsim can run, and what sets one apart from another.

Nothing here imports torch: families are listed, and a plug-in's is found, without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedsim.errors import FedsimError, nearest
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
    """Layers that stay in half precision, as names or patterns."""
    shorten: Callable[[Any, float], None] | None = None
    """f(network, seconds): cut the encoder's window, in place; None where clips may have any
    length."""
    default_extractor: Callable[[], Any] | None = None
    """Makes the feature extractor of a checkpoint that has none; None where each must have one."""
    prepare: Callable[[Any], None] | None = None
    """f(network): called once, before its layers are looked up."""
    optional_weights: tuple[str, ...] = ()
    """Ends of the names of weights that a checkpoint may lack."""

    @property
    def has_window(self) -> bool:
        """Whether the encoder takes a window of fixed length, which model.window_s shortens."""
        return self.shorten is not None


FAMILIES: Registry[ModelFamily] = Registry("model family")
FAMILIES.add(
    "wav2vec2",
    ModelFamily(
        Lazy("fedsim.speech.models.wav2vec2:adapt"),
        classes=(
            "Wav2Vec2ForCTC",
            "Wav2Vec2ConformerForCTC",
            "Wav2Vec2ForSequenceClassification",
            "Wav2Vec2ConformerForSequenceClassification",
        ),
        summary="wav2vec 2.0 and its Conformer variant, with a CTC head or a classifier.",
        default_extractor=Lazy("fedsim.speech.models.wav2vec2:default_extractor"),
        prepare=Lazy("fedsim.speech.models.wav2vec2:drop_unused"),
        optional_weights=("masked_spec_embed",),  # serves pretraining only
    ),
)
FAMILIES.add(
    "whisper",
    ModelFamily(
        Lazy("fedsim.speech.models.whisper:adapt"),
        classes=("WhisperForConditionalGeneration",),
        summary="Whisper: an encoder over a fixed window of audio, a decoder over tokens.",
        # Tables that are added, not multiplied with.
        keep=("model.encoder.embed_positions", "model.decoder.embed_positions"),
        shorten=Lazy("fedsim.speech.models.whisper:shorten"),
    ),
)


def family_of(class_name: str, model: str) -> ModelFamily:
    """Return the family that a class of transformers belongs to.

    Raises `FedsimError`, which names the model, for a class that no family has.
    """
    known = {name: FAMILIES[family] for family in FAMILIES for name in FAMILIES[family].classes}
    if class_name not in known:
        raise FedsimError(
            f"model {model!r} is a {class_name}, which fedsim cannot run; choose a model of"
            f" another class: {nearest(class_name, known)}"
        )
    return known[class_name]
