"""A run whose full-precision model is held in half the bytes."""

import io

import toys
from rich.console import Console

from fedsim.runner.show import print_run
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario


def test_full_precision_is_counted_in_its_own_type(model_folder, tmp_path):
    """Half the bytes of float32, which a sentence below the table explains; the quantized model's
    file is as large as ever."""
    corpus = toys.write_corpus(tmp_path / "corpus", toys.SPEAKERS[:1])
    file = toys.write_scenario(
        tmp_path / "s.yaml",
        model={"id": str(model_folder("ctc-layer"))},
        corpus={"path": str(corpus), "group_by": "speaker", "tuning_clips": 3, "test_clips": 2},
        clients={"budget_mb": 0.05},
        methods=["fp32", {"allocation": "myqasr", "calibration": ["minmax"]}],
    )
    found, texts = {}, {}
    for dtype in ("float32", "bfloat16"):
        scenario = load_scenario(file, [f"model.dtype={dtype}"])
        result = run_scenario(scenario, tmp_path / dtype)
        assert result.failures == []
        found[dtype] = {row.method: row.file_bytes for row in result.rows}
        console = Console(file=io.StringIO(), width=120)
        print_run(scenario, result, console)
        texts[dtype] = " ".join(console.file.getvalue().split())
    full, quantized = found["float32"]
    assert found["bfloat16"][full] * 2 == found["float32"][full]
    assert found["bfloat16"][quantized] == found["float32"][quantized]
    sentence = "fp32 is the full-precision model, in bfloat16 (model.dtype)."
    assert sentence in texts["bfloat16"]
    assert "model.dtype" not in texts["float32"]
