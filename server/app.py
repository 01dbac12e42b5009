"""The Flower ServerApp: sense, plan, deliver, evaluate; results go to the ledger client by
client."""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsim.quant import modelfile
from fedsim.quant.bank import BlobStore, LayerBank
from fedsim.quant.switch import switch_of
from fedsim.results.folder import RunFolder
from fedsim.results.ledger import Ledger
from fedsim.scenario.schema import scenario_from_json
from fedsim.study import load_study_model, model_manifest
from server.plan import Planner
from server.study import Study

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario in `context.run_config` over `grid`.

    The run config holds `scenario` (JSON), `run-dir` (where the ledger is) and `bank-dir` (where
    packed layers are put; clients read them there).
    """
    config = context.run_config
    scenario = scenario_from_json(str(config["scenario"]))
    store = BlobStore(Path(str(config["bank-dir"])))
    model = load_study_model(scenario)
    switch = switch_of(model)
    stored = modelfile.store_leftovers(switch.full_leftovers())
    manifest = model_manifest(scenario, model, ())
    sizes = modelfile.model_sizes(model.layers, stored, manifest, scenario.clients.bit_depths)
    granularity = scenario.quantization.weights
    run_dir = Path(str(config["run-dir"]))
    layers = [{"name": a.name, "kind": a.kind, "weights": a.n_weights} for a in model.layers]
    RunFolder(run_dir).layers.write_text(json.dumps(layers) + "\n", encoding="utf-8")
    bank = LayerBank(switch.full_weights(), model.layers, granularity, store)
    with Ledger(RunFolder(run_dir).ledger) as ledger:
        names = {node.node_id: node.name for node in grid.get_nodes() if node.name}
        Study(grid, scenario, Planner(scenario, sizes, bank), ledger, names).run()
