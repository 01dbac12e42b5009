"""Carries a scenario out: loads the model, writes the run's facts, coordinates the clients."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from flwr.serverapp import Grid

from fedsim.base.cache import LRUCache
from fedsim.base.files import write_text
from fedsim.protocol.run_config import RunConfig
from fedsim.quant.bank import BlobNames, BlobStore, LayerBank
from fedsim.quant.moments import usable
from fedsim.results.folder import RunFolder
from fedsim.results.ledger import Ledger
from fedsim.results.records import FULL_MODEL, PUBLIC_CLIPS
from fedsim.scenario.cells import all_cells, needs_others, timed_model
from fedsim.scenario.schema import Scenario, scenario_from_json
from fedsim.study.by_language import KEPT, StudyModels, open_study_models
from fedsim.study.cost import ModelCost
from fedsim.study.fleet_cost import model_cost
from fedsim.study.metric import metric_of
from fedsim.study.model import StudyModel
from fedsim.study.privacy_statement import privacy_statement, write_statement
from fedsim.study.public_bounds import scenario_bounds
from fedsim.study.public_model import public_model
from fedsim.study.rare_words import check_has_words
from fedsim.study.vocabulary import trimmed_models
from fedsim_server.coordinator import Coordinator
from fedsim_server.faulty import FaultyGrid
from fedsim_server.planner import Planner
from fedsim_server.roster import Roster
from fedsim_server.sent_layers import SentLayers
from fedsim_server.summaries import summary_reader


def serve(
    grid: Grid, run_config: RunConfig, names: Mapping[int, str], *, by_value: bool = False
) -> None:
    """Run a scenario over `grid`, in a run folder that exists and has an empty bank.

    Args:
        grid: reaches the clients.
        run_config: the scenario, and its run folder.
        names: node id -> client key, of the nodes whose client is known before it answers.
        by_value: whether messages carry the packed layers; else clients read them from the bank.
    """
    scenario = scenario_from_json(run_config.scenario)
    store = BlobStore(run_config.bank_dir)
    models = open_study_models(scenario)
    check_has_words(scenario, models.first.model)
    study, layers = models.first, models.first.model.layers
    folder = RunFolder(run_config.run_dir)
    bounds = scenario_bounds(scenario, lambda language: models.load(language).model)
    metric = metric_of(scenario) if study.model.task != "classify" else "wer"
    planner = _planners(models, store, metric)
    _write_layers(folder, planner)
    clients = len(names) or len(list(grid.get_node_ids()))
    statement = privacy_statement(scenario.privacy, len(layers), clients, bounds)
    write_statement(folder.privacy, statement)
    reader = summary_reader(scenario, len(layers), bounds)
    with Ledger(folder.ledger) as ledger:
        roster = Roster(ledger, dict(names), needs_others(scenario), reader.epsilon)
        if scenario.faults:
            grid = FaultyGrid(grid, names, scenario, roster.log_event)
        sent = SentLayers(store) if by_value else None
        Coordinator(grid, scenario, planner, roster, reader, sent).run()
        if scenario.fleet is not None:
            plans = ledger.planned(timed_model(scenario)).values()
            languages = sorted({plan.language for plan in plans} - {""})
            _cost(planner, languages).write(folder.cost)


def _planners(models: StudyModels, store: BlobStore, metric: str) -> Planner:
    """Return the planner of a run, which by language has one for each (`Planner.of`)."""
    scenario = models.scenario
    if not models.languages:
        return _planner(scenario, models.first, store, metric, reads=True)
    known: LRUCache[Planner] = LRUCache(max_values=KEPT)
    packed: defaultdict[str, BlobNames] = defaultdict(dict)  # outlives the planner

    def in_language(language: str) -> Planner:
        def make() -> Planner:
            study, names = models.load(language), packed[language]
            return _planner(scenario, study, store, metric, language, names, reads=True)

        return known.get(language, make)

    # Nothing is planned with it, so that nothing of the public clips is computed for it.
    first = _planner(scenario, models.first, store, metric, reads=False)
    return replace(first, in_language=in_language)


def _planner(
    scenario: Scenario,
    study: StudyModel,
    store: BlobStore,
    metric: str,
    language: str | None = None,
    names: BlobNames | None = None,
    *,
    reads: bool,
) -> Planner:
    """Return the planner of one model, that of a language or of all.

    `names` are those of its packed layers; `reads` says whether public clips have a part in it
    where the scenario wants them.
    """
    public = public_model(scenario, study.model, language)
    wanted = {cell.moments for cell in all_cells(scenario)} if reads else set()
    # Made here for a blend too: workers on this machine then find them in the cache folder.
    moments = public.moments if wanted & {"public", "blend"} else {}
    weights = study.switch.full_weights()
    bank = LayerBank(weights, study.model.layers, study.weight_format, store, moments, names)
    full = study.switch.full_bytes()
    clips, downloads = b"", {FULL_MODEL: full}
    if "blend" in wanted:
        sent = public.clips.to_bytes()
        clips, downloads[PUBLIC_CLIPS] = bytes.fromhex(store.put(sent)), len(sent)
    trimmed = trimmed_models(scenario, study)
    return Planner(scenario, study.sizes, bank, public, full, clips, downloads, trimmed, metric)


def _cost(planner: Planner, languages: Sequence[str]) -> ModelCost:
    """Return what the model costs devices whose clients speak these languages."""
    if planner.in_language is None or not languages:
        assert planner.trimmed is not None
        return model_cost(planner.scenario, planner.trimmed, planner.public, languages)
    costs = {language: _cost(planner.in_language(language), ()) for language in languages}
    return replace(costs[languages[0]], by_language=costs)


def _write_layers(folder: RunFolder, planner: Planner) -> None:
    """Write what the report says of each layer; by language, of the model's own language, and
    nothing of moments, which differ."""
    reads = any(cell.moments in ("public", "blend") for cell in all_cells(planner.scenario))
    known = reads and planner.in_language is None
    facts = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "weights": layer.n_weights,
            "moments": usable(planner.public.moments, layer) is not None if known else None,
        }
        for layer in planner.bank.layers
    ]
    write_text(folder.layers, json.dumps(facts) + "\n")
