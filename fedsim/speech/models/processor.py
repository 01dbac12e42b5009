"""The files beside a model's weights: feature extractor and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedsim.base.files import is_lfs_pointer
from fedsim.errors import FedsimError
from fedsim.speech.families import ModelFamily

_EXTRACTOR = "preprocessor_config.json"
_NORMALIZE = "true for a model of clips with zero mean and unit variance, else false"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")


def refuse_pointers(folder: Path) -> None:
    """Raise `FedsimError` for a file of a model folder that Git LFS has not fetched."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if is_lfs_pointer(file):
            raise FedsimError(
                f"{file} is a pointer of Git LFS, not the file itself; run git lfs pull in its "
                f"folder"
            )


def load_extractor(place: str, name: str, family: ModelFamily, normalize: bool | None) -> Any:
    """Return the feature extractor of a model.

    Args:
        place: hub id or folder.
        name: what an error calls the model.
        family: of the model.
        normalize: stands in for a file that is lost.

    Raises:
        FedsimError: if there is none and nothing stands in, or the other way round.
    """
    from transformers import AutoFeatureExtractor

    makes = family.default_extractor
    if normalize is not None and makes is None:
        raise FedsimError(
            f"model.normalize is given, but {name!r} takes no raw audio; remove it, and add "
            f"preprocessor_config.json to the model's folder if it lacks one"
        )
    try:
        extractor = AutoFeatureExtractor.from_pretrained(place)
    except (OSError, ValueError) as error:
        if makes is None or normalize is None:
            instead = "" if makes is None else f", or set model.normalize: {_NORMALIZE}"
            raise FedsimError(
                f"model {name!r} has no usable preprocessor_config.json: {first_line(error)}; add "
                f"the file to its folder{instead}"
            ) from error
        return makes(normalize)
    if normalize is not None:
        raise FedsimError(
            f"model.normalize is given, but model {name!r} has a preprocessor_config.json, which "
            f"says it; remove normalize"
        )
    return extractor


def load_tokenizer(place: str, name: str, class_name: str) -> Any:
    """Return the tokenizer of a model; None if it has none, as classifiers have.

    Raises:
        FedsimError: if the files of a recognizer's tokenizer are there and cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        there = [file for file in _TOKENIZER_FILES if (Path(place) / file).is_file()]
        if there and not class_name.endswith("Classification"):
            raise FedsimError(
                f"the tokenizer of model {name!r} cannot be read ({first_line(error)}); correct or "
                f"fetch again {', '.join(there)}"
            ) from error
        return None  # adapters that need one raise


def left_out(model: str) -> str:
    """Return a sentence on what a loaded model has and is not used; empty if all is."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = Path(model)
    found: Any = folder / _EXTRACTOR
    if not folder.is_dir():
        try:
            found = try_to_load_from_cache(model, _EXTRACTOR)
        except HFValidationError:  # not a hub id: a model in memory, or a bundled one
            return ""
    try:
        about = json.loads(Path(found).read_text(encoding="utf-8"))["processor_class"]
    except (OSError, ValueError, KeyError, TypeError):
        about = ""
    if about == "Wav2Vec2ProcessorWithLM" or (folder / "language_model").is_dir():
        return (
            f"model {model}: its n-gram language model is not used: transcripts are those of "
            f"greedy decoding"
        )
    return ""


def first_line(error: Exception) -> str:
    """Return the first line of an error, without the mark at its end."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
