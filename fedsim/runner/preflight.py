"""Preflight: checks of a scenario before it is run, with its model and some of its clips.

The model is loaded in full precision and nothing is quantized. The audio of one client is read; the
texts, labels and languages of all clients are checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsim.base.cache import LRUCache
from fedsim.base.units import MB
from fedsim.errors import AudioError, BudgetError, FedsimError, defect, nearest, quoted
from fedsim.quant.allocation import smallest
from fedsim.quant.formats import file_words
from fedsim.scenario import Scenario
from fedsim.scenario.matrix import expand
from fedsim.scenario.scores import normalized_by
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.clips import ClientData, Clients, Utterance, read_utterance
from fedsim.speech.duplicates import require_distinct
from fedsim.speech.eligible import check_metadata
from fedsim.speech.models.base import SpeechModel, transcribe_clips
from fedsim.speech.models.processor import left_out
from fedsim.study.by_language import KEPT, StudyModels, model_languages, open_study_models
from fedsim.study.devices import Devices
from fedsim.study.metric import metric_of
from fedsim.study.model import StudyModel, study_model
from fedsim.study.rare_words import check_has_words
from fedsim.study.vocabulary import TrimmedModels, trimmed_models

_LOOKED_AT = 200
"""Clients of a population that are made."""


@dataclass
class _Survey:
    """What is known about the clips of the clients that can take part, without reading audio."""

    clients: int = 0
    first: ClientData | None = None
    references: int = 0
    wordless: int = 0
    labels: dict[str, str] = field(default_factory=dict)  # text -> its first clip, for errors
    languages: dict[str | None, None] = field(default_factory=dict)
    spoken: dict[str, str | None] = field(default_factory=dict)
    """Client -> its language."""


def preflight(scenario: Scenario, clients: Clients) -> Iterator[str]:
    """Yield one sentence for each check that passes.

    Args:
        scenario: of a matrix, the model and the budgets of every combination are checked.
        clients: the clients of the scenario.

    Raises:
        FedsimError: for the first check that fails.
    """
    cells = [cell.scenario for cell in expand(scenario)]
    of_models = {cell.model: cell for cell in cells}.values()
    speaks = any(cell.model.vocabulary or model_languages(cell) for cell in of_models)
    survey = _survey(scenario, clients, all_of_them=speaks)
    for settings in dict.fromkeys(cell.model for cell in cells):
        same_model = [cell for cell in cells if cell.model == settings]
        models = open_study_models(same_model[0])
        assert survey.first is not None
        _check_spoken(models, survey)
        study = models.load(survey.first.language)
        model = study.model
        yield _model(study)
        if note := left_out(model.id):
            yield note
        yield _size(models, same_model, survey)
        yield _clips(model, scenario, survey)
        yield _classes(model, survey) if model.task == "classify" else _texts(survey)
        yield _languages(models, model, survey)
        yield _heard(model, same_model[0], survey)
        yield from _scores(model, same_model)


def _survey(scenario: Scenario, clients: Clients, *, all_of_them: bool) -> _Survey:
    survey = _Survey()
    keys, wordless = list(clients), ""
    survey.spoken = dict.fromkeys(keys)
    if clients.clips is not None and not all_of_them:
        # Synthetic speakers have as many clips each, and nothing that one lacks: a choice will do.
        step = max(1, len(keys) // _LOOKED_AT)
        survey.clients = len(keys) - len(keys[::step])
        survey.references = survey.clients * clients.clips[1]
        keys = keys[::step]
    for client in (clients[key] for key in keys):
        survey.spoken[client.key] = client.language
        survey.wordless += len(client.wordless)
        wordless = wordless or next(iter(client.wordless), "")
        try:
            check_metadata(client, scenario.corpus)
        except FedsimError:
            continue  # this client fails in a run, and the others go on
        survey.clients += 1
        survey.first = survey.first or client
        survey.references += len(client.test)
        survey.languages[client.language] = None
        for utterance in client.test:
            where = f"client {client.key!r}: test clip {utterance.key}"
            survey.labels.setdefault(utterance.text or "", where)
    if survey.first is None and wordless:
        raise FedsimError(
            f"corpus: no client has a test clip whose text has a word once normalized, the first"
            f" without is {wordless}: correct the texts, or choose other clients"
        )
    if survey.first is None:
        raise FedsimError(
            "corpus: no client has both tuning and test clips, so there is nothing to run: lower"
            " corpus.tuning_clips, or choose other clients"
        )
    return survey


def _model(study: StudyModel) -> str:
    model = study.model
    weights = sum(layer.n_weights for layer in model.layers)
    size = study.switch.full_bytes() / MB
    kind = str(next(iter(study.switch.full_weights().values())).dtype).removeprefix("torch.")
    precision = "full precision" if kind == "float32" else f"full precision ({kind})"
    return (
        f"model: {model.id} is a {type(model.module).__name__} of {len(model.layers)} layers with "
        f"{weights:,} weights, {size:,.1f} MB in {precision}"
    )


def _check_spoken(models: StudyModels, survey: _Survey) -> None:
    """Raise `FedsimError` for the first client that the model has no adapters for."""
    for key, language in survey.spoken.items() if models.languages else ():
        try:
            models.name(language)
        except FedsimError as error:
            raise FedsimError(f"client {key!r}: {error}") from error


def _size(models: StudyModels, cells: Sequence[Scenario], survey: _Survey) -> str:
    """Compare budgets with the smallest model file, for the client where they are closest."""
    tables: LRUCache[TrimmedModels] = LRUCache(max_values=KEPT)
    minimum: dict[Any, int] = {}  # by what the sizes depend on, legal bit depths and language
    closest = None
    devices = unfit = 0
    for cell in cells:
        depths, quantization = cell.clients.bit_depths, cell.quantization
        kind = (
            *(depths, cell.clients.format),
            *(quantization.weights, quantization.zero_points, quantization.activation_bits),
        )
        for key, device in Devices(cell, list(survey.spoken)).items():
            legal, budget = device.bit_depths, device.budget_bytes
            speaks = cell.model.vocabulary or models.languages
            language = survey.spoken[key] if speaks else None
            if (kind, legal, language) not in minimum:
                model = language if models.languages else None

                def load(cell: Scenario = cell, model: str | None = model) -> TrimmedModels:
                    return trimmed_models(cell, study_model(cell, models.load(model).model))

                try:
                    sizes = tables.get((kind, model), load).of(language).sizes
                except FedsimError as error:
                    raise FedsimError(f"client {key!r}: {error}") from error
                minimum[kind, legal, language] = smallest(sizes.restricted(legal))
            least = minimum[kind, legal, language]
            devices, unfit = devices + 1, unfit + (least > budget)
            if closest is None or budget - least < closest[0] - closest[1]:
                closest = budget, least, key, legal[0], file_words(cell.clients.format)
    assert closest is not None
    budget, size, key, depth, file = closest
    if 0 < unfit < devices and all(cell.fleet is not None for cell in cells):
        return (
            f"size: {unfit:,} of {devices:,} devices cannot hold even the smallest {file} of "
            f"their bit depths and will fail at plan; client {key!r} lacks most, with "
            f"{_megabytes(budget)} for {_megabytes(size)}"
        )
    if size > budget:
        raise BudgetError(
            f"clients.budget_mb: the smallest budget, {_megabytes(budget)} of client {key!r}, is "
            f"below the smallest {file}, {_megabytes(size)}, {depth} bits in every layer: "
            f"raise the budget or allow smaller bit depths"
        )
    return (
        f"size: the smallest budget, {_megabytes(budget)} of client {key!r}, holds the smallest "
        f"{file}, {_megabytes(size)}, {depth} bits in every layer"
    )


def _megabytes(size: int) -> str:
    return f"{size / MB:,.2f} MB ({size:,} bytes)"


def _clips(model: SpeechModel, scenario: Scenario, survey: _Survey) -> str:
    """Read the clips of one client, and batch them as the model does."""
    client = survey.first
    assert client is not None
    if scenario.corpus.duplicates == "refuse":
        require_distinct(client)
    lengths = [
        _seconds(model, scenario, client, utterance) for utterance in (*client.tuning, *client.test)
    ]
    return (
        f"clips: client {client.key!r} has {len(client.tuning)} tuning and {len(client.test)} test "
        f"clips, {SAMPLE_RATE:,} Hz and one channel, {min(lengths):.1f} to {max(lengths):.1f} s"
    )


def _seconds(
    model: SpeechModel, scenario: Scenario, client: ClientData, utterance: Utterance
) -> float:
    clip = read_utterance(utterance, convert=scenario.corpus.convert)
    try:
        for _ in model.batches([clip]):
            pass
    except AudioError as error:
        raise AudioError(f"client {client.key!r}: clip {utterance.key}: {error}") from error
    return len(clip) / SAMPLE_RATE


def _heard(model: SpeechModel, scenario: Scenario, survey: _Survey) -> str:
    """Recognize a test clip in full precision: what only decoding meets shows here."""
    client = survey.first
    assert client is not None
    chosen = client.test[0]
    clip = read_utterance(chosen, convert=scenario.corpus.convert)
    try:
        (hypothesis,) = transcribe_clips(model, [clip], client.language)
    except FedsimError:
        raise
    except Exception as error:  # transformers raises what incomplete files happen to lead to
        raise FedsimError(
            f"model {model.id!r} recognizes no clip ({defect(error)}); its files may be incomplete"
            f" or of another version of transformers; tried with test clip {chosen.key} of client"
            f" {client.key!r}"
        ) from error
    return (
        f"recognition: test clip {chosen.key} of client {client.key!r}, {quoted(chosen.text)},"
        f" is recognized as {quoted(hypothesis)}"
    )


def _texts(survey: _Survey) -> str:
    wordless = f"{survey.wordless:,} more have no word and are not scored"
    more = wordless if survey.wordless else "none empty once normalized"
    return f"texts: {survey.references:,} references of {survey.clients:,} clients, {more}"


def _scores(model: SpeechModel, cells: Sequence[Scenario]) -> Iterator[str]:
    """Yield what transcripts are scored by, once for each metric and normalizer of a matrix."""
    for cell in cells:
        check_has_words(cell, model)
    if model.task != "classify":
        for metric, texts in dict.fromkeys((metric_of(c), c.text_normalizer) for c in cells):
            yield f"scores: {metric.upper()}, {normalized_by(texts)}"
        for beyond in dict.fromkeys(c.rare_beyond for c in cells if c.rare_beyond):
            yield f"scores: rare words, beyond the {beyond:,} most frequent of each language"


def _classes(model: SpeechModel, survey: _Survey) -> str:
    config: Any = model.module.config
    classes = {str(name).strip().casefold(): str(name) for name in config.id2label.values()}
    unknown = {t: at for t, at in survey.labels.items() if t.strip().casefold() not in classes}
    if unknown:
        text, where = next(iter(unknown.items()))
        more = f", nor are {len(unknown) - 1} other labels" if len(unknown) > 1 else ""
        raise FedsimError(
            f"{where} is labelled {text!r}, which is not a class of model {model.id!r}{more}: "
            f"{nearest(text, classes.values())}; choose a model that knows it, or list it under "
            f"corpus.leave_out"
        )
    return (
        f"classes: the {len(survey.labels):,} labels of {survey.clients:,} clients are among the "
        f"model's {len(classes):,} classes"
    )


def _languages(models: StudyModels, model: SpeechModel, survey: _Survey) -> str:
    if models.languages:
        pairs = sorted((str(spoken), models.name(spoken)) for spoken in survey.languages)
        words = ", ".join(a if a == b else f"{a} ({b})" for a, b in pairs)
        return f"languages: each client is served by the adapters of its own: {words}"
    rules: Any = getattr(model.module, "generation_config", None)
    if not getattr(rules, "is_multilingual", False):
        return "languages: the model takes none"
    silence = np.zeros(SAMPLE_RATE, np.float32)
    for language in survey.languages:
        next(iter(model.batches([silence], language)))  # raises for one that the model lacks
    named = sorted(language for language in survey.languages if language is not None)
    if not named:
        return "languages: none is given, so the model detects it clip by clip"
    others = "; the others' is detected clip by clip" if None in survey.languages else ""
    return f"languages: the model knows {', '.join(named)}{others}"
