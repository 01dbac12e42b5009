"""Carries a scenario out: loads the model, writes the run's facts, coordinates the clients."""

from __future__ import annotations

import json
from collections.abc import Mapping

from flwr.serverapp import Grid

from fedsim.base.files import write_text
from fedsim.protocol.run_config import RunConfig
from fedsim.quant.bank import BlobStore, LayerBank
from fedsim.quant.moments import usable
from fedsim.results.folder import RunFolder
from fedsim.results.ledger import Ledger
from fedsim.results.records import FULL_MODEL, PUBLIC_CLIPS
from fedsim.scenario.cells import all_cells, needs_others, timed_model
from fedsim.scenario.schema import scenario_from_json
from fedsim.study.fleet_cost import model_cost
from fedsim.study.metric import metric_of
from fedsim.study.model import load_study_model
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
    study = load_study_model(scenario)
    check_has_words(scenario, study.model)
    layers = study.model.layers
    folder = RunFolder(run_config.run_dir)
    bounds = scenario_bounds(scenario, study.model)
    public = public_model(scenario, study.model)
    # Made here for a blend too: workers on this machine then find them in the cache folder.
    reads = any(cell.moments in ("public", "blend") for cell in all_cells(scenario))
    moments = public.moments if reads else {}
    facts = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "weights": layer.n_weights,
            "moments": usable(moments, layer) is not None if reads else None,
        }
        for layer in layers
    ]
    write_text(folder.layers, json.dumps(facts) + "\n")
    weights = study.switch.full_weights()
    bank = LayerBank(weights, layers, study.weight_format, store, moments)
    clients = len(names) or len(list(grid.get_node_ids()))
    statement = privacy_statement(scenario.privacy, len(layers), clients, bounds)
    write_statement(folder.privacy, statement)
    reader = summary_reader(scenario, len(layers), bounds)
    with Ledger(folder.ledger) as ledger:
        roster = Roster(ledger, dict(names), needs_others(scenario), reader.epsilon)
        if scenario.faults:
            grid = FaultyGrid(grid, names, scenario, roster.log_event)
        blends = any(cell.moments == "blend" for cell in all_cells(scenario))
        clips = bytes.fromhex(store.put(public.clips.to_bytes())) if blends else b""
        full = study.switch.full_bytes()
        downloads = {FULL_MODEL: full}
        if blends:
            downloads[PUBLIC_CLIPS] = len(public.clips.to_bytes())
        trimmed = trimmed_models(scenario, study)
        metric = metric_of(scenario) if study.model.task != "classify" else "wer"
        planner = Planner(
            scenario, study.sizes, bank, public, full, clips, downloads, trimmed, metric
        )
        sent = SentLayers(store) if by_value else None
        Coordinator(grid, scenario, planner, roster, reader, sent).run()
        if scenario.fleet is not None:
            plans = ledger.planned(timed_model(scenario)).values()
            languages = sorted({plan.language for plan in plans} - {""})
            model_cost(scenario, trimmed, public, languages).write(folder.cost)
