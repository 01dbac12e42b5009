"""Loading a pretrained speech model from the hub or a local folder, behind its adapter."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedsim.base.imports import importing
from fedsim.base.paths import BUNDLED_PREFIX, bundled_folder
from fedsim.errors import FedsimError, nearest
from fedsim.quant.layers import find_layers, plain_weights
from fedsim.quant.linear import use_onednn
from fedsim.speech.models.base import SpeechModel
from fedsim.speech.models.wav2vec2 import CLASSES as WAV2VEC2
from fedsim.speech.models.whisper import CLASSES as WHISPER

ADAPTERS = dict.fromkeys(WAV2VEC2, "wav2vec2") | dict.fromkeys(WHISPER, "whisper")
"""Class name in a model's config.json -> module of its adapter."""


def load_model(
    model: str | os.PathLike[str],
    *,
    window_s: float | None = None,
    keep: Sequence[str] = (),
    batch_size: int = 8,
) -> SpeechModel:
    """Load a pretrained model in float32, ready to be observed and quantized.

    `model` is a hub id, `bundled:NAME`, or a folder in the transformers layout (config.json,
    safetensors, processor files), which is read through a memory map. `window_s` (1..30, Whisper
    only) shortens the encoder's input; `keep` names layers to leave in full precision;
    `batch_size` is the most clips in a batch.

    Raises `FedsimError` when there is no such model, its architecture is not known, a file is
    missing or damaged, or an option does not fit.
    """
    with importing():
        import transformers.modeling_utils  # noqa: F401  (two seconds, whatever the model is)

    name = str(model)
    place = str(bundled_folder(name)) if name.startswith(BUNDLED_PREFIX) else name
    config = _read_config(place)
    class_name = (config.architectures or ["?"])[0]
    if class_name not in ADAPTERS:
        raise FedsimError(
            f"model {name!r} is a {class_name}, which fedsim cannot run: "
            f"{nearest(class_name, ADAPTERS)}"
        )
    adapter = importlib.import_module(f"fedsim.speech.models.{ADAPTERS[class_name]}")
    module = _load_module(place, class_name)
    if window_s is not None:
        _shorten(name, module, window_s)
    layers = find_layers(module, (*adapter.KEEP, *keep))
    extractor, tokenizer = _load_processor(place, config)
    return adapter.adapt(name, module, layers, extractor, tokenizer, batch_size)


def wrap_model(
    module: nn.Module,
    extractor: Any,
    tokenizer: Any = None,
    *,
    name: str = "in memory",
    keep: Sequence[str] = (),
    batch_size: int = 8,
) -> SpeechModel:
    """Return the adapter of a transformers model that is already in memory (eval mode, float32)."""
    class_name = type(module).__name__
    if class_name not in ADAPTERS:
        raise FedsimError(
            f"a {class_name} is nothing fedsim can run: {nearest(class_name, ADAPTERS)}"
        )
    adapter = importlib.import_module(f"fedsim.speech.models.{ADAPTERS[class_name]}")
    module = _freeze(module)
    layers = find_layers(module, (*adapter.KEEP, *keep))
    return adapter.adapt(name, module, layers, extractor, tokenizer, batch_size)


def _read_config(name: str) -> Any:
    from transformers import AutoConfig

    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FedsimError(
            f"folder {name} holds no config.json: give a model folder in the transformers layout"
        )
    if not folder.is_dir() and (folder.is_absolute() or name.startswith(".")):
        raise FedsimError(f"there is no model folder {name}; check model.id")
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise FedsimError(
                f"config.json of model {name!r} cannot be read: {_first_line(error)}; fetch it "
                f"again"
            ) from error
        raise FedsimError(
            f"model {name!r} cannot be loaded: it is no folder here, and the hub gave: "
            f"{_first_line(error)}; check the id and the network, or give a local folder"
        ) from error


def _load_module(name: str, class_name: str) -> nn.Module:
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    quiet = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        module, report = getattr(transformers, class_name).from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # transformers, safetensors and torch each raise their own
        raise FedsimError(
            f"the weights of model {name!r} cannot be read: {_first_line(error)}; fetch it again"
        ) from error
    finally:
        logging.set_verbosity(quiet)
    # The mask embedding serves pretraining only; a checkpoint may lack it.
    missing = sorted(k for k in report["missing_keys"] if not k.endswith("masked_spec_embed"))
    if missing:
        raise FedsimError(
            f"model {name!r} lacks {len(missing)} of its weights (first: {missing[0]!r}): it was "
            f"not fine-tuned as a {class_name}; choose a checkpoint that was"
        )
    return _freeze(module)


def _freeze(module: nn.Module) -> nn.Module:
    module.eval()
    module.requires_grad_(False)
    config: Any = module.config
    for layerdrop in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if hasattr(config, layerdrop):
            setattr(config, layerdrop, 0.0)
    conformer: Any = getattr(module, "wav2vec2_conformer", None)
    if conformer is not None:  # transformers makes this convolution and never calls it
        conformer.encoder.pos_conv_embed = nn.Identity()
    return use_onednn(plain_weights(module))


def _load_processor(name: str, config: Any) -> tuple[Any, Any]:
    """Return the feature extractor, and the tokenizer or None."""
    from transformers import AutoFeatureExtractor, AutoTokenizer, Wav2Vec2FeatureExtractor

    try:
        extractor = AutoFeatureExtractor.from_pretrained(name)
    except (OSError, ValueError) as error:
        if config.model_type == "whisper":
            raise FedsimError(
                f"model {name!r} has no preprocessor_config.json: {_first_line(error)}"
            ) from error
        extractor = Wav2Vec2FeatureExtractor(do_normalize=True, sampling_rate=16_000)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError):
        tokenizer = None  # a classifier has none; adapters that need one say so
    return extractor, tokenizer


def _shorten(name: str, module: nn.Module, window_s: float) -> None:
    """Cut Whisper's encoder window to `window_s` seconds, in place."""
    config: Any = module.config
    if config.model_type != "whisper":
        raise FedsimError(
            f"model.window_s is {window_s:g}, but {name!r} is no Whisper model and takes clips of "
            f"any length; remove window_s"
        )
    full = config.max_source_positions / 50
    if not 1 <= window_s <= full:
        raise FedsimError(f"model.window_s is {window_s:g}: use 1 to {full:g} seconds")
    positions = round(window_s * 50)
    encoder: Any = module.model.encoder  # type: ignore[union-attr]
    table = nn.Embedding(positions, config.d_model)
    table.weight = nn.Parameter(
        encoder.embed_positions.weight[:positions].clone(), requires_grad=False
    )
    encoder.embed_positions = table
    encoder.max_source_positions = positions
    config.max_source_positions = positions


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
