"""A tiny MMS: a wav2vec 2.0 with adapters, a head and a vocabulary for each of three languages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import toys
from safetensors.torch import save_file

from fedsim.results.ledger import Ledger
from fedsim.runner.single import RunResult, run_scenario
from fedsim.scenario import Scenario, load_scenario

GREEK = ("<pad>", "<s>", "</s>", "<unk>", "|", *"αβγδεζηθικλμνξοπρστυφχψω")
SAME = ("<pad>", "<s>", "</s>", "<unk>", "|", *"zyxwvutsrqponmlkjihgfedcba'")
"""As many letters as English has, in another order: no shape tells them apart."""
VOCABULARIES = {"eng": toys.LETTERS, "ell": GREEK, "zzz": SAME}
SPEAKS = {"ann": "en", "bea": "el", "cid": "zzz", "dan": "el"}
"""Client -> the language that it speaks, as corpora write it."""
NAMES = {"en": "eng", "el": "ell", "zzz": "zzz"}
"""As the model writes them."""
METHODS = [
    "fp32",
    {"allocation": "uniform", "calibration": ["minmax", "none"]},
    {"allocation": "myqasr", "calibration": "cosine", "rounding": ["nearest", "scaled"]},
]
SETTINGS = {
    "corpus": {"path": "clips", "group_by": "speaker", "tuning_clips": 2, "test_clips": 2},
    "clients": {"budget_mb": 0.05},
    "methods": METHODS,
    "save_models": True,
    "study": True,
}


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


def save_study(folder: Path) -> Path:
    """Write the toy and a corpus of the clients of `SPEAKS`."""
    save(folder / "mms")
    toys.write_corpus(folder / "clips", list(SPEAKS), each=4, languages=list(SPEAKS.values()))
    return folder


def writer(home: Path) -> Callable[..., Scenario]:
    """Return f(settings of the model, sections) -> a scenario of that study."""

    def write(model: dict[str, Any] | None = None, **sections: Any) -> Scenario:
        chosen = {"model": {"id": "mms", "batch_size": 4} | (model or {})} | SETTINGS | sections
        return load_scenario(toys.write_scenario(home / "toy.yaml", **chosen))

    return write


def of_client(result: RunResult, client: str) -> tuple[list[Any] | dict[str, bytes], ...]:
    """Rows, plans, sensitivities and model files of one client."""
    with Ledger(result.folder.ledger) as ledger:
        sensed = [s for s in ledger.sensed() if s.client == client]
        plans = [p for p in ledger.plans() if p.client == client]
    rows = [row for row in result.rows if row.client == client]
    files = {p.name: p.read_bytes() for p in result.folder.models.glob(f"{client}-*")}
    return rows, plans, sensed, files


def alone(
    write: Callable[..., Scenario],
    folder: Path,
    differs: Callable[[str], dict[str, Any]] = lambda language: {},
    **sections: Any,
) -> Iterator[tuple[str, RunResult]]:
    """Yield each client, and the run of those who speak its language with target_lang fixed.

    `differs` gives the sections of such a run that are its own.
    """
    for language, name in NAMES.items():
        keys = [key for key, spoken in SPEAKS.items() if spoken == language]
        chosen = sections | differs(language)
        chosen["clients"] = SETTINGS["clients"] | chosen.get("clients", {}) | {"select": keys}
        result = run_scenario(write({"target_lang": name}, **chosen), folder / name)
        yield from ((key, result) for key in keys)


def check(result: RunResult, alone: Iterable[tuple[str, RunResult]]) -> None:
    """Check that each client has what it has in a run of its language, to the byte."""
    for key, run in alone:
        assert run.failures == []
        assert of_client(result, key) == of_client(run, key)
        assert all(of_client(run, key))
