"""The Flower ServerApp: sense, plan, deliver, evaluate; results go to the ledger client by
client."""

from __future__ import annotations

import json
from collections.abc import Mapping

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsim.assignment import Assignment, is_complete, read_assignment
from fedsim.engine.faulty import FaultyGrid
from fedsim.promise import promise, write_promise
from fedsim.quant import modelfile
from fedsim.quant.bank import BlobStore, LayerBank
from fedsim.quant.switch import switch_of
from fedsim.results.folder import RunFolder
from fedsim.results.ledger import Ledger
from fedsim.scenario.schema import scenario_from_json
from fedsim.study import load_study_model, model_cost, model_manifest
from server.carrier import Carrier
from server.plan import Planner
from server.public import scenario_bounds
from server.study import Study
from server.told import told_by

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario that `context.run_config` names over `grid`, see `fedsim.assignment`.

    `fedsim run` has made the run folder and collects what this leaves there. Started by `flwr run`,
    the app does that itself.
    """
    assignment = read_assignment(context)
    if is_complete(context.run_config):
        serve(grid, assignment, {node.node_id: node.name for node in grid.get_nodes()})
    else:
        from server.launched import run_launched

        run_launched(grid, assignment)


def serve(
    grid: Grid, assignment: Assignment, names: Mapping[int, str], *, by_value: bool = False
) -> None:
    """Run a scenario over `grid`; its run folder is there, with an empty bank.

    `names` holds node id -> client key, of the nodes whose client is known before it answers. With
    `by_value` models travel in the messages; else clients read them from the bank.
    """
    scenario = scenario_from_json(assignment.scenario)
    store = BlobStore(assignment.bank_dir)
    model = load_study_model(scenario)
    switch = switch_of(model)
    stored = modelfile.store_leftovers(switch.full_leftovers())
    manifest = model_manifest(scenario, model, ())
    sizes = modelfile.model_sizes(model.layers, stored, manifest, scenario.clients.bit_depths)
    granularity = scenario.quantization.weights
    folder = RunFolder(assignment.run_dir)
    layers = [{"name": a.name, "kind": a.kind, "weights": a.n_weights} for a in model.layers]
    folder.layers.write_text(json.dumps(layers) + "\n", encoding="utf-8")
    if scenario.fleet is not None:
        model_cost(scenario, model, sizes, stored, switch.full_bytes()).write(folder.cost)
    bounds = scenario_bounds(scenario, model)
    bank = LayerBank(switch.full_weights(), model.layers, granularity, store)
    made = promise(
        scenario.privacy, len(model.layers), len(names) or len(list(grid.get_node_ids())), bounds
    )
    write_promise(folder.privacy, made)
    told = told_by(scenario, len(model.layers), bounds)
    with Ledger(folder.ledger) as ledger:
        study = Study(grid, scenario, Planner(scenario, sizes, bank), ledger, told, dict(names))
        study.carrier = Carrier(store) if by_value else None
        if scenario.faults:
            study.grid = FaultyGrid(grid, names, scenario, study.note)
        study.run()
