"""Seven speakers whose devices release their profiles in two groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paper
import toys

from fedsim.privacy.bounds import Bounds, denormalize, normalize
from fedsim.privacy.secure_aggregation.groups import make_groups
from fedsim.results.ledger import Ledger
from fedsim.runner.single import RunResult, run_scenario
from fedsim.scenario import Scenario

PEOPLE = [f"speaker{i}" for i in range(7)]
SEED = 5
SMALL, LARGE = sorted(make_groups(PEOPLE, 3, SEED), key=len)
"""Groups of three and four."""


def write_clips(folder: Path) -> Path:
    return toys.write_corpus(folder, PEOPLE, each=3)


def run_groups(
    model: Path, clips: Path, home: Path, release: str = "cohort", engine: str = "own"
) -> RunResult:
    settings: dict[str, Any] = {
        "name": "toy",
        "seed": SEED,
        "model": {"id": str(model), "batch_size": 4},
        "corpus": {
            "path": str(clips),
            "group_by": "speaker",
            "tuning_clips": 2,
            "test_clips": 1,
        },
        "clients": {"budget_mb": [0.032, 0.028], "bit_depths": [2, 4, 8]},
        "quantization": paper.QUANTIZATION,
        "methods": [{"allocation": "myqasr", "calibration": ["minmax"]}],
        "engine": {"kind": engine},
        "privacy": {
            "release": release,
            "public_voices": 2,
            "bounds": [0.0, 1.0],
            "cohort": {"size": 3, "threshold": 3},
        },
    }
    return run_scenario(Scenario.model_validate(settings), home)


def sensed(result: RunResult) -> dict[str, np.ndarray]:
    """What the ledger holds of each client's sensitivities."""
    with Ledger(result.folder.ledger) as ledger:
        return {s.client: np.array(s.sensitivity) for s in ledger.sensed()}


def group_mean(values: dict[str, np.ndarray], group: list[str], bounds: Bounds) -> np.ndarray:
    """The geometric mean of clipped values, by the definition."""
    return denormalize(np.mean([normalize(values[c], bounds) for c in group], axis=0), bounds)
