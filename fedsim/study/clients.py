"""The clients of a scenario, checked against its budgets, sources and privacy settings."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from fedsim.errors import FedsimError
from fedsim.quant.formats import require_packages
from fedsim.scenario.cells import all_cells, needs_others, reads_public_clips, timed_model
from fedsim.scenario.methods import wrong_sources
from fedsim.scenario.schema import Scenario
from fedsim.speech.corpus import open_clients
from fedsim.speech.voices.speaker import FIRST_BROAD_SPEAKER, FIRST_PUBLIC_SPEAKER
from fedsim.speech.voices.synthesizer import require_synthesizer
from fedsim.study.devices import Devices
from fedsim.study.rare_words import check_rare_words

MAX_CLIENT_RUNS = 500_000
"""Clients of all combinations of a matrix together."""


def client_keys(scenario: Scenario) -> list[str]:
    """Return the keys of a scenario's clients, in sorted order.

    Raises `FedsimError` for a corpus that cannot be opened, and where the scenario's budgets,
    sources or privacy settings do not fit the clients that were found, or a package is missing.
    """
    return check_clients(scenario, _open(scenario))


def keys_of_cells(scenarios: Sequence[Scenario]) -> list[list[str]]:
    """Return `client_keys` of each combination of a matrix; equal corpora are opened once.

    Raises `FedsimError` as `client_keys` does, and for more than `MAX_CLIENT_RUNS` together.
    """
    opened: dict[tuple[str, str, int, str, int | None], list[str]] = {}
    found, total = [], 0
    for scenario in scenarios:
        corpus, texts = scenario.corpus.model_dump_json(), scenario.text_normalizer
        chosen = scenario.clients.model_dump_json(include={"select", "min_clips", "limit"})
        key = corpus, chosen, scenario.seed, texts, scenario.rare_beyond
        if key not in opened:
            opened[key] = _open(scenario)
        total += len(opened[key])
        if total > MAX_CLIENT_RUNS:
            raise FedsimError(
                f"matrix: its {len(scenarios):,} combinations have more than {MAX_CLIENT_RUNS:,}"
                f" clients together: vary less, or lower clients.limit"
            )
        found.append(check_clients(scenario, opened[key]))
    return found


def _open(scenario: Scenario) -> list[str]:
    """Return the clients of a corpus, after checking that what is to be counted can be."""
    clients = open_clients(
        scenario.corpus, scenario.clients, scenario.seed, scenario.text_normalizer
    )
    check_rare_words(scenario, clients)
    return list(clients)


def check_clients(scenario: Scenario, clients: list[str]) -> list[str]:
    """Return the clients that were found, after checking that the scenario fits them.

    Raises `FedsimError` as `client_keys` does.
    """
    check_sources(scenario, clients)
    check_privacy(scenario, clients)
    check_public_voices(scenario)
    require_packages(scenario.clients.format)
    check_shared_models(scenario, Devices(scenario, clients))
    if scenario.fleet is not None:
        timed_model(scenario)
    return clients


def check_sources(scenario: Scenario, keys: Sequence[str]) -> None:
    """Check every `tuned_on` against the clients that were found.

    Raises:
        FedsimError: if an entry names a client that is not among `keys`, or another client where
            there is only one.
    """
    for message, location in wrong_sources(scenario.methods, keys):
        raise FedsimError(f"{'.'.join(map(str, location))}: {message}")


def check_shared_models(scenario: Scenario, devices: Devices) -> None:
    """Check that a client can test a model that another one's device rounded, where it is to.

    Such a model is made for its own device: the others must have the same budget and bit depths.

    Raises:
        FedsimError: if they differ, or a device supports none of the scenario's bit depths.
    """
    limits = {(device.budget_bytes, device.bit_depths) for device in devices.values()}
    rounded = any(cell.rounded_by_device for cell in all_cells(scenario))
    if len(limits) > 1 and rounded and needs_others(scenario):
        raise FedsimError(
            "methods: another client's model can be tested only on equal devices if the device"
            " rounds it (moments own or blend): give all clients one budget and the same bit"
            " depths, or use tuned_on: own, or moments: public"
        )


def check_privacy(scenario: Scenario, clients: Sequence[str]) -> None:
    """Check the privacy section against the clients that were found and what is installed.

    Raises:
        FedsimError: for a delta of 1 / clients or more, a group larger than the number of clients,
            secure noise without OpenDP, and public voices that cannot be synthesized or that take
            part in the study.
    """
    privacy, n = scenario.privacy, len(clients)
    if privacy.chosen.adds_noise:
        if privacy.delta * n >= 1:
            raise FedsimError(
                f"privacy.delta is {privacy.delta:g} and there are {n:,} clients, so one of them"
                f" may go unprotected; set it below 1 / clients = {1 / n:.3g}"
            )
        if privacy.noise == "secure" and find_spec("opendp") is None:
            raise FedsimError(
                "privacy.noise: secure noise comes from OpenDP, which is not installed; install"
                " fedsim-speech[privacy], or set seeded for a study"
            )
    if privacy.chosen.grouped and n < privacy.cohort.size:
        raise FedsimError(
            f"privacy.cohort.size is {privacy.cohort.size} and there are {n:,} clients; lower the"
            f" size or add clients"
        )
    if privacy.needs_bounds:
        require_synthesizer()
        _check_nobody_is_public(scenario, FIRST_PUBLIC_SPEAKER, "bounds come from")


def check_public_voices(scenario: Scenario) -> None:
    """Check that no speaker of the public clips takes part in the study.

    Raises:
        FedsimError: if the scenario's population reaches one of them.
    """
    if reads_public_clips(scenario) and scenario.quantization.public_clips is None:
        _check_nobody_is_public(scenario, FIRST_BROAD_SPEAKER, "rounding and plans rest on")


def _check_nobody_is_public(scenario: Scenario, first: int, purpose: str) -> None:
    people = scenario.corpus.population
    if people is not None and people.first + 2 * people.speakers > first:
        raise FedsimError(
            f"corpus.population reaches speaker {first:,}, the first of the public speakers that"
            f" {purpose}; lower first or speakers"
        )
