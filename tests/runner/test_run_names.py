"""Clients whose keys are words that tables use."""

from __future__ import annotations

import paper
import toys

from fedsim.results.lines import Source, table_lines
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario

KEYS = ("-", "each", "fp32", "other", "own")


def test_a_clients_key_is_never_taken_for_whose_clips(tmp_path, model_folder):
    toys.write_corpus(tmp_path / "clips", KEYS, each=2)
    file = toys.write_scenario(
        tmp_path / "names.yaml",
        model={"id": str(model_folder("ctc-group")), "batch_size": 4},
        corpus={"path": "clips", "group_by": "speaker", "tuning_clips": 1, "test_clips": 1},
        clients={"budget_mb": 0.0334},
        quantization=paper.QUANTIZATION,
        methods=["fp32", "uniform", {"allocation": "myqasr", "tuned_on": ["own", "each"]}],
    )
    result = run_scenario(load_scenario(file), tmp_path / "run")
    assert result.failures == []
    found = {(line.method, line.source): len(line.rows) for line in table_lines(result.rows)}
    everyone = len(KEYS)
    assert found == {
        ("fp32", Source.NOBODY): everyone,
        ("uniform/cosine", Source.OWN): everyone,
        ("myqasr/cosine", Source.OWN): everyone,
        ("myqasr/cosine", Source.OTHER): everyone * (everyone - 1),
    }
    pairs = {(row.client, row.tuned_on) for row in result.rows if row.method == "myqasr/cosine"}
    assert pairs == {(client, source) for client in KEYS for source in KEYS}
