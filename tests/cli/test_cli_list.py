"""`fedsim list`: every name that the schema takes, plug-ins included, without torch."""

from __future__ import annotations

from typing import get_args

import pytest

from fedsim.cli import main
from fedsim.fleet.devices import load_catalogue
from fedsim.scenario.schema import Scenario
from fedsim.scenario.settings import named_choices

PLUG_IN = """\
from fedsim.quant.measures import Measure

SIZE = Measure(value=lambda seen: float(len(seen.sample)), summary="Elements, by a plug-in.")
"""
ENTRY_POINTS = "[fedsim.sensitivity]\nelements = plugged:SIZE\n"
PROGRAM = """\
import sys
from fedsim.cli import main
code = main({words})
print("heavy:", *sorted({{"torch", "ray", "flwr", "transformers"}} & sys.modules.keys()))
sys.exit(code)
"""


def listed(text: str) -> dict[str, dict[str, str]]:
    """Title -> name -> line, of what `fedsim list` prints."""
    found: dict[str, dict[str, str]] = {}
    for block in text.strip().split("\n\n"):
        title, *lines = block.splitlines()
        names = {(words := line.split(maxsplit=1))[0]: words[-1] for line in lines}
        # Settings that name the same entries share a title.
        found |= dict.fromkeys([title, *title.split(", ")], names)
    return found


def literals(section: str, name: str) -> set[str]:
    """The words that a setting of a section may be."""
    setting = next(
        part.model_fields[name]
        for part in parts(Scenario.model_fields[section].annotation)
        if hasattr(part, "model_fields")
    )
    return {word for part in parts(setting.annotation) for word in get_args(part)}


def parts(annotation) -> list:
    return [annotation, *(below for part in get_args(annotation) for below in parts(part))]


def test_list_shows_scenarios_and_every_choice(capsys, folder):
    (folder / "scenarios").mkdir()
    (folder / "small.yaml").rename(folder / "scenarios" / "voices.yaml")
    assert main(["list"]) == 0
    found = listed(capsys.readouterr().out)
    assert found["scenarios (fedsim run NAME)"]["voices"] == "Two voices."
    for key, choices in named_choices(Scenario):
        assert found[key] == choices.describe()
        assert all(len(summary) > 10 for summary in found[key].values())  # each explained
    assert {key for key, _ in named_choices(Scenario)} >= {
        *("corpus.kind", "quantization.sensitivity", "methods.allocation", "methods.calibration"),
        *("privacy.release", "privacy.mechanism", "privacy.noise", "engine.kind"),
    }
    assert {"fp32", "myqasr"} <= found["methods.allocation"].keys()
    assert {"auto", "ray", "inprocess"} <= found["engine.kind"].keys()
    assert found["faults.kind"].keys() == literals("faults", "kind")
    assert found["clock.policy"].keys() == literals("clock", "policy")
    devices = next(names for title, names in found.items() if title.startswith("fleet.devices"))
    assert devices.keys() == load_catalogue().keys()


@pytest.mark.parametrize("words", [["list"], ["validate", "--schema"]])
def test_plug_ins_are_shown_and_nothing_heavy_is_imported(python, folder, words):
    (folder / "plugged.py").write_text(PLUG_IN)
    info = folder / "plugged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    child = python("-c", PROGRAM.format(words=words), PYTHONPATH=str(folder))
    out, err = child.communicate(timeout=120)
    assert (child.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "heavy:"
    if words == ["list"]:
        assert listed(out)["quantization.sensitivity"]["elements"] == "Elements, by a plug-in."
    else:
        assert '"elements"' in out
