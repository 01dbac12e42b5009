"""The clients of a scenario against what its public clips need."""

from __future__ import annotations

import pytest

from fedsim.errors import FedsimError
from fedsim.scenario import Scenario
from fedsim.study.clients import check_public_voices


def test_voices_of_public_clips_take_no_part():
    def made(**parts):
        population = {"speakers": 10, "first": 949_990}
        corpus = {"kind": "voices", "group_by": "speaker", "population": population}
        base = {"name": "toy", "model": {"id": "bundled:ctc"}, "clients": {"budget_mb": 1}}
        return Scenario.model_validate({**base, "corpus": corpus, "methods": ["uniform"], **parts})

    plain = {"rounding": "nearest"}
    for harmless in (
        {"quantization": plain},  # nobody reads public clips
        {"quantization": plain | {"moments": "own", "rounding": "compensated"}},
        {"quantization": {"public_clips": {"path": "clips", "group_by": "speaker"}}},
    ):
        check_public_voices(made(**harmless))
    for reading in (
        {"quantization": {"moments": "blend"}},
        {"quantization": plain, "methods": [{"allocation": "knapsack"}]},
        {"quantization": plain | {"activation_bits": "auto"}},
    ):
        with pytest.raises(FedsimError, match=r"speaker 950,000.*lower first or speakers"):
            check_public_voices(made(**reading))
