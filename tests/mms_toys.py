"""A tiny MMS: a wav2vec 2.0 with adapters, a head and a vocabulary for each of three languages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import toys
from safetensors.torch import save_file

GREEK = ("<pad>", "<s>", "</s>", "<unk>", "|", *"αβγδεζηθικλμνξοπρστυφχψω")
SAME = ("<pad>", "<s>", "</s>", "<unk>", "|", *"zyxwvutsrqponmlkjihgfedcba'")
"""As many letters as English has, in another order: no shape tells them apart."""
VOCABULARIES = {"eng": toys.LETTERS, "ell": GREEK, "zzz": SAME}


def save(folder: Path, vocabularies: Mapping[str, Sequence[str]] = VOCABULARIES) -> Path:
    """Write the toy as a folder in the transformers layout, as `facebook/mms-1b-all` has it.

    Its own language is English.
    """
    module = toys.wav2vec2("layer", adapter_attn_dim=8, do_stable_layer_norm=True)
    toys.save(module, folder)
    for seed, (language, letters) in enumerate(vocabularies.items()):
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for name, weight in module._get_adapters().items():
            shape = (len(letters), *weight.shape[1:]) if "lm_head" in name else weight.shape
            noise = torch.randn(shape, generator=generator)
            if name == "lm_head.bias":
                noise[1:4] = -100.0
            weights[name] = noise if "lm_head" in name else weight.detach() + 0.5 * noise
        save_file(weights, folder / f"adapter.{language}.safetensors")
    nested = {lang: {c: i for i, c in enumerate(v)} for lang, v in vocabularies.items()}
    (folder / "vocab.json").write_text(json.dumps(nested))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"target_lang": "eng"}))
    return folder
