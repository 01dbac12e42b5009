"""Loading a pretrained speech model from the hub or a local folder, behind its adapter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedsim.base.accelerators import AUTO, CPU, find_device
from fedsim.base.imports import importing
from fedsim.base.paths import BUNDLED_PREFIX, bundled_folder
from fedsim.errors import FedsimError, nearest
from fedsim.quant.layers import Layer, find_layers, plain_weights
from fedsim.quant.linear import use_onednn
from fedsim.speech.families import ModelFamily, family_of
from fedsim.speech.models.base import SpeechModel
from fedsim.speech.models.mapped import map_weights
from fedsim.speech.models.prepare import exact_convolutions
from fedsim.speech.models.processor import (
    first_line,
    load_extractor,
    load_tokenizer,
    refuse_pointers,
)

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def load_model(
    model: str | os.PathLike[str],
    *,
    window_s: float | None = None,
    keep: Sequence[str] = (),
    batch_size: int = 8,
    target_lang: str | None = None,
    normalize: bool | None = None,
    device: str = AUTO,
    dtype: str = "float32",
) -> SpeechModel:
    """Load a pretrained model, ready to be observed and quantized.

    Args:
        model: hub id, `bundled:NAME`, or a folder in the transformers layout (config.json,
            safetensors, processor files), which is read through a memory map.
        window_s: seconds to which the encoder's window is cut, for families that have one
            (Whisper: 1..30).
        keep: layers to leave in full precision, as names or patterns.
        batch_size: maximum number of clips in a batch.
        target_lang: the language whose adapters, head and vocabulary are loaded, for a model that
            has one of each per language (MMS: "ita").
        normalize: stands in for a preprocessor_config.json that is lost, of a model that takes raw
            audio: whether it was trained on clips of zero mean and unit variance.
        device: where it computes: auto (a GPU if there is one), cpu, cuda, cuda:N or mps.
        dtype: what the full-precision model is held and computed in: float32, float16, bfloat16.
            Models made from it are computed in float32, from the numbers that their files hold.

    Raises:
        FedsimError: if the model does not exist, its class belongs to no family, a file is missing
            or damaged, a weight is NaN or infinite, an option does not fit, or the device is not
            there: says what was found.
    """
    place_of_work = find_device(device)
    if dtype not in _DTYPES:
        raise FedsimError(f"dtype is {dtype!r}: {nearest(dtype, _DTYPES)}")
    with importing():
        import transformers.modeling_utils  # noqa: F401  (two seconds, whatever the model is)

    name = str(model)
    place = str(bundled_folder(name)) if name.startswith(BUNDLED_PREFIX) else name
    refuse_pointers(Path(place))
    config = _read_config(place)
    class_name = _class_of(config, name)
    family = family_of(class_name, name)
    module = _load_module(place, class_name, family)
    if window_s is not None:
        if family.shorten is None:
            raise FedsimError(
                f"model.window_s is {window_s:g}, but {name!r} takes clips of any length; remove "
                f"window_s"
            )
        family.shorten(module, window_s)
    extractor = load_extractor(place, name, family, normalize)
    tokenizer = load_tokenizer(place, name, class_name)
    if family.choose_language is not None:
        family.choose_language(module, tokenizer, target_lang, name)
        _freeze(module, family)  # a head may have been replaced
    elif target_lang is not None:
        raise FedsimError(
            f"model.target_lang is {target_lang!r}, but {name!r} has no adapters of languages; "
            f"remove target_lang"
        )
    _narrow(module, dtype, name)
    if dtype != "float32" and place_of_work == CPU:
        map_weights(module, place)
    module.to(place_of_work)
    layers = _find_layers(module, family, keep)
    seconds = None if window_s is None else float(window_s)
    settings: dict[str, Any] = {"window_s": seconds, "keep": list(keep)}
    if target_lang is not None:
        settings["target_lang"] = target_lang
    if normalize is not None:
        settings["normalize"] = normalize
    return family.adapt(name, module, layers, extractor, tokenizer, batch_size, settings)


def languages_of(model: str) -> tuple[str, ...]:
    """Return the languages of which a model (hub id, `bundled:NAME` or folder) has weights and a
    vocabulary each, its own first; empty for a model with one set of weights.

    The weights are not read. Raises `FedsimError` as `load_model` does.
    """
    place = str(bundled_folder(model)) if model.startswith(BUNDLED_PREFIX) else model
    config = _read_config(place)
    class_name = _class_of(config, model)
    family = family_of(class_name, model)
    if family.languages is None:
        return ()
    return family.languages(config, lambda: load_tokenizer(place, model, class_name))


def wrap_model(
    module: nn.Module,
    extractor: Any,
    tokenizer: Any = None,
    *,
    name: str = "in memory",
    keep: Sequence[str] = (),
    batch_size: int = 8,
) -> SpeechModel:
    """Return the adapter of a transformers model that is already in memory.

    The model is changed in place: float32, eval mode, no gradients. The other arguments are those
    of `load_model`. Raises `FedsimError` for a class that belongs to no family.
    """
    family = family_of(type(module).__name__, name)
    module = _freeze(module, family)
    layers = _find_layers(module, family, keep)
    settings = {"window_s": None, "keep": list(keep)}
    return family.adapt(name, module, layers, extractor, tokenizer, batch_size, settings)


def _class_of(config: Any, name: str) -> str:
    """Return the class of transformers that a model was saved as."""
    if not config.architectures:
        raise FedsimError(
            f"config.json of model {name!r} names no class of transformers (architectures is null"
            f' or missing); add the one that it was fine-tuned as, such as "architectures": '
            f'["Wav2Vec2ForCTC"]'
        )
    return str(config.architectures[0])


def _find_layers(module: nn.Module, family: ModelFamily, keep: Sequence[str]) -> tuple[Layer, ...]:
    # Not every variant has all layers that its family keeps, but a user's must be there.
    names = [name for name, _ in module.named_modules()]
    kept = [k for k in family.keep if any(fnmatchcase(name, k) for name in names)]
    return find_layers(module, (*kept, *keep))


def _read_config(name: str) -> Any:
    from transformers import AutoConfig

    folder = Path(name)
    if os.path.isdir(folder) and not (folder / "config.json").is_file():
        raise FedsimError(
            f"model folder {name} has no config.json; give a folder in the transformers layout"
        )
    if not os.path.isdir(folder) and (folder.is_absolute() or name.startswith(".")):
        raise FedsimError(f"there is no model folder {name}; check model.id")
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        if os.path.isdir(folder):
            raise FedsimError(
                f"config.json of model {name!r} cannot be read: {first_line(error)}; fetch it again"
            ) from error
        raise FedsimError(
            f"model {name!r} cannot be loaded: no such folder, and from the hub: "
            f"{first_line(error)}; check the id and the network, or give a local folder"
        ) from error


def _load_module(name: str, class_name: str, family: ModelFamily) -> nn.Module:
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
            f"the weights of model {name!r} cannot be read: {first_line(error)}; fetch it again"
        ) from error
    finally:
        logging.set_verbosity(quiet)
    missing = sorted(k for k in report["missing_keys"] if not k.endswith(family.optional_weights))
    if missing:
        raise FedsimError(
            f"model {name!r} lacks {len(missing)} of the weights of a {class_name} (first: "
            f"{missing[0]!r}); choose a checkpoint that was fine-tuned as one"
        )
    _require_finite(name, module)
    return _freeze(module, family)


def _require_finite(name: str, module: nn.Module) -> None:
    for key, tensor in module.state_dict().items():
        if not tensor.is_floating_point() or torch.isfinite(tensor.sum()):
            continue  # the sum, which takes a third of the time, is finite only if all are
        if not torch.isfinite(tensor).all():
            raise FedsimError(
                f"the weights of model {name!r} hold NaN or infinite numbers (first: {key!r}); "
                f"fetch it again, or choose a checkpoint whose training did not diverge"
            )


def _narrow(module: nn.Module, dtype: str, name: str) -> None:
    """Hold the state of a network in another type, in place.

    What is computed when the network is made and belongs to no state (frequencies of rotary
    positions) stays in float32. Raises `FedsimError` for a weight that the type cannot hold.
    """
    kind = _DTYPES[dtype]
    if kind == torch.bfloat16:
        exact_convolutions(module)
    for key, holder in module.state_dict(keep_vars=True).items():
        if holder.is_floating_point() and holder.dtype != kind:
            holder.data = holder.data.to(kind)
            if not torch.isfinite(holder.data).all():
                raise FedsimError(
                    f"model.dtype is {dtype!r}, and weights of model {name!r} are too large for it"
                    f" (first: {key!r}): use bfloat16 or float32"
                )


def _freeze(module: nn.Module, family: ModelFamily) -> nn.Module:
    module.eval()
    module.requires_grad_(False)
    config: Any = module.config
    for layerdrop in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if hasattr(config, layerdrop):
            setattr(config, layerdrop, 0.0)
    if family.prepare is not None:
        family.prepare(module)
    return use_onednn(plain_weights(module))
