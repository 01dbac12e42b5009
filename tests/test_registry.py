"""Registries: entries by name, those of installed plug-ins, and code that is imported late."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from fedsim.errors import FedsimError
from fedsim.registry import Lazy, Registry

PLUGIN = """\
from dataclasses import dataclass

@dataclass(frozen=True)
class Drink:
    summary: str

TEA = Drink("Leaves in water.")
MILK = Drink("Of the plug-in.")
"""
ENTRY_POINTS = """\
[fedsim.hot_drink]
tea = plugged_drinks:TEA
milk = plugged_drinks:MILK
[fedsim.cold_drink]
juice = nowhere_to_be_found:JUICE
"""


@dataclass(frozen=True)
class Drink:
    summary: str


@pytest.fixture
def drinks() -> Registry[Drink]:
    registry: Registry[Drink] = Registry("hot drink")
    registry.add("milk", Drink("Warmed."))
    registry.add("cocoa", Drink("With sugar."))
    return registry


@pytest.fixture
def plugin(tmp_path, monkeypatch) -> None:
    """A package as pip would install it, which adds hot drinks and a cold one that is broken."""
    (tmp_path / "plugged_drinks.py").write_text(PLUGIN)
    info = tmp_path / "plugged_drinks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged-drinks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("plugged_drinks", None)


def test_entries_by_name(drinks):
    assert drinks["milk"] == Drink("Warmed.")
    assert drinks.names() == list(drinks) == ["cocoa", "milk"]
    assert "milk" in drinks
    assert "tea" not in drinks
    assert drinks.describe() == {"cocoa": "With sugar.", "milk": "Warmed."}
    entry = Drink("Black.")
    assert drinks.add("coffee", entry) is entry
    assert list(drinks) == ["cocoa", "coffee", "milk"]


def test_an_unknown_name_comes_with_the_nearest(drinks):
    with pytest.raises(FedsimError, match="hot drink 'mlik': did you mean 'milk'"):
        drinks["mlik"]
    with pytest.raises(FedsimError, match="hot drink 'xyz': known: cocoa, milk"):
        drinks["xyz"]
    with pytest.raises(FedsimError, match="known: none"):
        Registry("empty shelf")["milk"]


def test_a_name_that_is_taken(drinks):
    with pytest.raises(ValueError, match="'milk' is registered twice"):
        drinks.add("milk", Drink("Another."))
    assert drinks["milk"] == Drink("Warmed.")


def test_entries_of_plug_ins_are_found_and_listed(drinks, plugin):
    assert "tea" in drinks
    assert drinks["tea"].summary == "Leaves in water."
    assert drinks.names() == ["cocoa", "milk", "tea"]
    # A name of fedsim's own is not replaced.
    assert drinks.describe() == {
        "cocoa": "With sugar.",
        "milk": "Warmed.",
        "tea": "Leaves in water.",
    }


def test_a_plug_in_is_loaded_when_a_name_is_missing_and_not_before(drinks, plugin):
    assert drinks["milk"] == Drink("Warmed.")
    assert "plugged_drinks" not in sys.modules
    assert drinks["tea"].summary == "Leaves in water."
    assert "plugged_drinks" in sys.modules


def test_a_plug_in_that_cannot_be_imported_is_named(plugin):
    with pytest.raises(FedsimError, match=r"plugged-drinks.*'juice'.*nowhere_to_be_found"):
        Registry("cold drink")["juice"]


def test_code_is_imported_when_it_is_called(tmp_path, monkeypatch):
    (tmp_path / "late_module.py").write_text(
        "calls = []\n\ndef add(a, *, b=0):\n    calls.append((a, b))\n    return a + b\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    add = Lazy("late_module:add")
    assert add == Lazy("late_module:add")
    assert "late_module" not in sys.modules
    assert add(1, b=2) == 3
    assert add(5) == 5
    assert sys.modules.pop("late_module").calls == [(1, 2), (5, 0)]
    with pytest.raises(ModuleNotFoundError):
        Lazy("no_such_module:f")()


def test_choices_are_listed_without_importing_torch():
    import subprocess

    code = (
        "import sys; from fedsim.quant import allocation, calibrators, measures;"
        "found = [r.describe() for r in (allocation.ALLOCATORS, calibrators.CALIBRATORS,"
        " measures.MEASURES)]; assert all(found); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
