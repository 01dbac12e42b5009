"""A scenario to start from, for recordings and a model: what is chosen, and why."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedsim.base.paths import is_path, resolve
from fedsim.base.text import plain_name
from fedsim.base.units import MB, count_words, time_words
from fedsim.base.yamltree import dump
from fedsim.errors import FedsimError
from fedsim.quant.allocation import smallest
from fedsim.scenario.corpus import CorpusSettings
from fedsim.scenario.readers import READERS
from fedsim.scenario.schema import Scenario
from fedsim.speech.clips import Utterance, utterance_seconds
from fedsim.speech.spaces import is_unspaced
from fedsim.speech.survey import Survey, survey
from fedsim.speech.survey_groups import Grouping, choose_grouping
from fedsim.speech.voices.speaker import ACCENTS
from fedsim.study.model import StudyModel, load_study_model

MAX_CLIENTS = 20
"""Clients of a scenario to start from."""
_BUDGET_BITS = (3, 4, 6)


def starter(folder: Path, model: str, out: Path) -> str:
    """Return the YAML text of a scenario that runs on a folder of recordings.

    Args:
        folder: of recordings, or a manifest, in any layout of `corpus.kind`.
        model: a hub id, `bundled:NAME`, `cache:NAME` or a folder.
        out: the YAML file that is to hold it; paths in it are relative to that.

    Raises:
        FedsimError: for recordings without a known layout, texts, speakers or enough clips, labels
            that the model does not know, and a model that cannot be loaded.
    """
    found = survey(folder)
    study = load_study_model(_skeleton(found, resolve(model, Path.cwd())))
    usable, leave_out = _labelled(found, study)
    window = getattr(study.model, "window", None)
    if window is not None and found.longest > window:
        usable = [u for u in usable if utterance_seconds(u) <= window]
    grouping = choose_grouping(found, usable)
    return "\n".join(
        [
            f"# fedsim run {_one_line(str(out))}",
            f"name: {plain_name(out.stem, 'study')}",
            "description: |",
            f"  {count_words(len(grouping.counts), 'client')} of"
            f" {_one_line(folder.resolve().name)}.",
            "seed: 1",
            "model:",
            f"  {_yaml('id', _place(model, out))}   # {_size(study)}",
            *_corpus(found, out, grouping, leave_out, window),
            *_clients(grouping, study),
            *_scores(found, study),
            *_methods(found),
            "",
        ]
    )


def _skeleton(found: Survey, model: str) -> Scenario:
    corpus = CorpusSettings(kind=found.kind, path=str(found.path), group_by="speaker")
    return Scenario.model_validate(
        {
            "name": "starter",
            "model": {"id": model},
            "corpus": corpus.model_dump(mode="json"),
            "clients": {"budget_mb": 1.0},
            "methods": ["fp32"],
        }
    )


def _labelled(found: Survey, study: StudyModel) -> tuple[list[Utterance], tuple[str, ...]]:
    """Return the clips that can be used, and of a classifier the labels that are left out."""
    if not any(u.text for u in found.utterances):
        raise FedsimError(
            f"{found.path}: no clip has a text to compare with: add texts where the layout"
            f" {found.kind!r} has them"
        )
    if study.model.task != "classify":
        return list(found.utterances), ()
    config: Any = study.model.module.config
    classes = {str(name).strip().casefold() for name in config.id2label.values()}
    labels = {u.text for u in found.utterances if u.text}
    unknown = sorted(label for label in labels if label.strip().casefold() not in classes)
    if len(unknown) == len(labels):
        raise FedsimError(
            f"{found.path}: the texts of the clips, such as {unknown[0]!r:.60}, are not among the"
            f" {len(classes):,} classes of model {study.model.id!r}: name a model that transcribes,"
            f" or one that knows them"
        )
    return [u for u in found.utterances if u.text not in unknown], tuple(unknown)


def _corpus(
    found: Survey,
    out: Path,
    grouping: Grouping,
    leave_out: Sequence[str],
    window: float | None,
) -> list[str]:
    fewest, key = grouping.smallest
    about = "" if found.looked_at == len(found.utterances) else "about "
    sign = READERS[found.kind].sign
    lines = [
        "corpus:",
        f"  # {count_words(len(found.utterances), 'clip')},"
        f" {about}{time_words(found.seconds)}, {_languages(found)}",
        f"  kind: {found.kind}" + (f"   # it has {_one_line(sign)}" if sign else ""),
        f"  {_yaml('path', _place(str(found.path), out))}",
    ]
    if found.split is not None:
        lines.append(f"  {_yaml('split', found.split)}")
    if found.columns:
        lines.append(f"  {_yaml('columns', dict(found.columns))}   # its names of these columns")
    lines.append(f"  group_by: {grouping.by}   # {grouping.why}")
    if leave_out:
        lines.append(f"  {_yaml('leave_out', list(leave_out))}   # not classes of the model")
    lines += [
        f"  tuning_clips: {grouping.tuning}   # unlabelled; client {_one_line(key)} has the fewest"
        f" clips, {fewest}",
        f"  test_clips: {grouping.test}   # held out",
    ]
    if window is not None:
        lines.append(f"  max_seconds: {window:g}   # the model's window")
    if not found.uniform:
        lines.append("  convert: true   # some clips are not 16 kHz mono")
    return lines


def _clients(grouping: Grouping, study: StudyModel) -> list[str]:
    lines = ["clients:"]
    keys = list(grouping.counts)[:MAX_CLIENTS]
    rest = len(grouping.counts) - len(keys)
    if grouping.left_out or rest:
        few = f"without {grouping.left_out:,} that lack clips or a text"
        more = f"{rest:,} more could take part"
        why = "; ".join([few] * bool(grouping.left_out) + [more] * bool(rest))
        lines.append(f"  {_yaml('select', keys)}   # {why}")
    sizes = study.sizes
    budgets = [sizes.total([bits] * len(study.model.layers)) for bits in _BUDGET_BITS]
    ends = (smallest(sizes), sizes.total([8] * len(study.model.layers)))
    low, high = (f"{_rounded(n):g}" for n in ends)
    listed = ", ".join(f"{_rounded(n):g}" for n in budgets)
    bits = ", ".join(map(str, _BUDGET_BITS[:-1])) + f" and {_BUDGET_BITS[-1]}"
    lines += [
        f"  # The model takes {low} MB with {sizes.depths[0]} bits in every layer, and {high} MB"
        f" with 8; these are {bits} bits.",
        f"  budget_mb: [{listed}]   # given to the clients in turn",
    ]
    return lines


def _scores(found: Survey, study: StudyModel) -> list[str]:
    if study.model.task == "classify":
        return []
    languages = found.languages
    if languages and all(map(is_unspaced, languages)):
        metric = "these languages are written without spaces: the error rate of characters"
    else:
        metric = "the error rate of words, or of characters if no client's language has spaces"
    return [
        f"metric: auto   # {metric}",
        "text_normalizer: basic   # or english, Whisper's, as published English WERs have it; none",
    ]


def _methods(found: Survey) -> list[str]:
    """Return the methods, without those that need public clips where these cannot be made."""
    unknown = [language for language in found.languages if language not in ACCENTS]
    if find_spec("espeakng_loader") is None:
        why = "fedsim-speech[voices], which makes public clips, is not installed"
    elif unknown:
        why = f"no synthetic voice speaks {', '.join(unknown[:3])}: give quantization.public_clips"
    else:
        why = ""
    lines = ["methods:", "  - fp32"]
    if why:
        lines = ["quantization:", f"  rounding: nearest   # {_one_line(why)}", *lines]
    lines.append("  - uniform")
    lines.append("  - {allocation: myqasr, rounding: nearest}   # the paper")
    return lines if why else [*lines, "  - knapsack"]


def _size(study: StudyModel) -> str:
    weights = sum(layer.n_weights for layer in study.model.layers)
    full = study.switch.full_bytes() / MB
    return f"{len(study.model.layers)} layers, {weights:,} weights, {full:.1f} MB in full precision"


def _languages(found: Survey) -> str:
    named = ", ".join(found.languages[:5])
    more = f" and {len(found.languages) - 5} more" if len(found.languages) > 5 else ""
    return _one_line(f"in {named}{more}") if named else "no language stated"


def _rounded(n_bytes: int) -> float:
    """Return bytes in MB, rounded up to three digits, so that the file fits."""
    megabytes = n_bytes / MB
    digits = 2 - math.floor(math.log10(megabytes))
    return math.ceil(megabytes * 10**digits) / 10**digits


def _place(text: str, out: Path) -> str:
    """Return what a scenario file calls a place: relative to the file, if it was given so."""
    if os.path.isabs(text) or not is_path(resolve(text, Path.cwd())):
        return text
    if text.startswith(("cache:", "~", "$")):
        return text
    relative = os.path.relpath(text, out.absolute().parent)
    return relative if relative.startswith("..") else f"./{relative}"


def _yaml(key: str, value: Any) -> str:
    """Return a setting on one line."""
    text = dump({key: value}).strip()
    # JSON is YAML, and has no lines.
    return text if "\n" not in text else f"{key}: {json.dumps(value, ensure_ascii=False)}"


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
