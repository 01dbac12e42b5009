"""What a run's results depend on, bound in its ledger: settings, packages, contents of files.

It is written when a run begins. A run that is resumed with anything else is refused with what
differs, since its results would be of two studies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fedsim.base.accelerators import CPU, device_facts, find_device
from fedsim.errors import FedsimError
from fedsim.privacy.budget import HOME
from fedsim.quant.formats import FORMATS, OWN
from fedsim.results.bound import SETTING, check_settings, listed, settings_of
from fedsim.results.folder import DEVICE, RELEVANT_VERSIONS, RunFolder, version_of, versions
from fedsim.results.ledger import Ledger
from fedsim.runner.contents import Contents, HubId, places
from fedsim.scenario.schema import Scenario

PACKAGE, PLACE, FILE = "package", "place", "file"
"""Kinds of facts: package -> version; dotted key -> hash of its file or folder; a file in it."""


def bind(ledger: Ledger, folder: RunFolder, scenario: Scenario, contents: Contents) -> None:
    """Bind a run to its scenario, packages and files, or check that they are those it began with.

    Args:
        ledger: of the run.
        folder: of the run.
        scenario: of the run.
        contents: hashes the files.

    Raises:
        FedsimError: if anything differs on which results depend: names it. Also if a file cannot
            be read, or the privacy budget of the run's clients is gone.
    """
    if not ledger.facts(SETTING):
        if ledger.finished() or ledger.failures():
            raise FedsimError(
                f"{ledger.path}: the ledger has results, but not of which scenario: begin a new run"
            )
        write_binding(ledger, scenario, contents)
        return
    check_settings(ledger, folder.path, scenario)
    _check_packages(ledger, folder.path, scenario)
    _check_files(ledger, folder.path, scenario, contents)
    _check_budget(ledger, folder, scenario)


def write_binding(ledger: Ledger, scenario: Scenario, contents: Contents) -> None:
    """Bind a ledger to a scenario, its packages and its files, whatever it was bound to before."""
    ledger.put_facts(
        {
            SETTING: settings_of(scenario).items(),
            PACKAGE: relevant_versions(scenario).items(),
            PLACE: [(k, contents.digest(place)) for k, place in places(scenario, contents).items()],
            FILE: _files(scenario, contents),
        }
    )


def relevant_versions(scenario: Scenario) -> dict[str, str]:
    """Return the versions of the packages of which another version may give other results, and
    the device that computes, if it is not the processor."""
    vocabulary, public = scenario.model.vocabulary, scenario.quantization.public_clips
    names = list(RELEVANT_VERSIONS)
    if (vocabulary and not vocabulary.words_from) or scenario.rare_beyond:
        names.append("wordfreq")
    # Public clips are synthetic if there is no corpus of them.
    if scenario.corpus.population or public is None or public.population:
        names.append("espeakng-loader")
    if scenario.clients.format != OWN:
        names += FORMATS[scenario.clients.format].packages
    installed = versions()
    found = {name: installed.get(name) or version_of(name) for name in names}
    device = find_device(scenario.engine.device, where="engine.device")
    return found if device == CPU else found | {DEVICE: device_facts(device)}


def _files(scenario: Scenario, contents: Contents) -> Iterator[tuple[str, str]]:
    for key, place in places(scenario, contents).items():
        for name, digest in contents.files(place):
            yield f"{key} {name}", digest.hex()


def _check_packages(ledger: Ledger, path: Path, scenario: Scenario) -> None:
    begun, now = ledger.facts(PACKAGE), relevant_versions(scenario)
    if begun.get(DEVICE, CPU) != now.get(DEVICE, CPU):
        raise FedsimError(
            f"{path}: the run was begun on the device {begun.get(DEVICE, CPU)}, and this is"
            f" {now.get(DEVICE, CPU)}: choose that one (engine.device, --device), or begin a new"
            f" run"
        )
    for name, version in now.items():
        if begun.get(name) != version:
            raise FedsimError(
                f"{path}: the run was begun with {name} {begun.get(name)}, but {version} is"
                f" installed: install that version, or begin a new run"
            )


def _check_files(ledger: Ledger, path: Path, scenario: Scenario, contents: Contents) -> None:
    begun = ledger.facts(PLACE)
    changed = {
        key: place
        for key, place in places(scenario, contents).items()
        if (digest := contents.digest(place)) != begun.get(key)
        # Without a network, or for a first run, the commit may not be known.
        and not (isinstance(place, HubId) and not (digest and begun.get(key)))
    }
    if not changed:
        return
    before, texts = ledger.facts(FILE), []
    for key, place in changed.items():
        if isinstance(place, HubId):
            texts.append(f"{place.id} of the hub has another commit than {begun[key]} ({key})")
        now = {f"{key} {name}": digest.hex() for name, digest in contents.files(place)}
        known = [name for name in before if name.startswith(f"{key} ")]
        for name in sorted({*known, *now}):
            if before.get(name) != now.get(name):
                what = "was changed" if name in before else "was added"
                file = os.path.normpath(Path(place) / name.removeprefix(f"{key} "))
                texts.append(f"{file} {what if name in now else 'is gone'} ({key})")
    raise FedsimError(
        f"{path}: the files on which its results depend are not those that the run was begun with:"
        f" {listed(texts)}; restore them, or begin a new run"
    )


def _check_budget(ledger: Ledger, folder: RunFolder, scenario: Scenario) -> None:
    """Check that what clients have spent is still known, where the run folder has it."""
    elsewhere = os.environ.get(HOME) or scenario.engine.address
    if not elsewhere and not folder.budget.is_file() and ledger.has_noisy_releases():
        raise FedsimError(
            f"{folder.budget}: the clients have spent of their privacy budgets, and the file that"
            " holds how much is gone: restore it, or begin a new run"
        )
