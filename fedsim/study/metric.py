"""Which error rate a run counts: of words, or of characters where words are not set apart."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.errors import FedsimError
from fedsim.scenario.schema import Scenario
from fedsim.scenario.scores import Metric
from fedsim.speech.clips import Clients
from fedsim.speech.corpus import open_clients
from fedsim.speech.spaces import is_segmented, is_unspaced, writes_unspaced

LOOKED_UP = 100
"""Recorded clients whose language is looked up."""
_MAX_NAMED = 5


def metric_of(scenario: Scenario) -> Metric:
    """Return what a scenario's transcripts are scored by; a classifier does not ask.

    `auto` is CER if every client whose language is known writes it without spaces. Synthetic
    speakers' languages are in the scenario; of recordings the first `LOOKED_UP` clients are looked
    up, and where they cannot be opened (a server without the recordings) it is WER.
    """
    if scenario.metric != "auto":
        return scenario.metric
    people = scenario.corpus.population
    if people is not None:
        return "cer" if all(map(is_unspaced, people.languages)) else "wer"
    try:
        clients = open_clients(
            scenario.corpus, scenario.clients, scenario.seed, scenario.text_normalizer
        )
    except FedsimError:
        return "wer"
    known = [one for one in _unspaced(clients).values() if one is not None]
    return "cer" if known and all(known) else "wer"


def unspaced_line(scenario: Scenario, clients: Clients) -> str:
    """Return a hint that names the clients whose words WER does not count; "" if there are none."""
    people = scenario.corpus.population
    if people is not None and not any(map(is_unspaced, people.languages)):
        return ""
    found = [key for key, unspaced in _unspaced(clients).items() if unspaced]
    if not found:
        return ""
    return (
        f"WER counts what stands between spaces, and the language of {_named(found)} is written"
        " without them: for the error rate of characters set metric: cer"
    )


def segmented_line(clients: Clients) -> str:
    """Return a hint that names the clients whose references have spaces that CER counts; "" if
    there are none."""
    found = [key for key in sorted(clients)[:LOOKED_UP] if is_segmented(clients[key])]
    if not found:
        return ""
    return (
        f"CER counts spaces, and the references of {_named(found)} have some between characters:"
        " where the model's transcripts have none, set text_normalizer: unspaced"
    )


def _named(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _MAX_NAMED:,} more" if len(keys) > _MAX_NAMED else ""
    return ", ".join(keys[:_MAX_NAMED]) + more


def _unspaced(clients: Clients) -> dict[str, bool | None]:
    return {key: writes_unspaced(clients[key]) for key in sorted(clients)[:LOOKED_UP]}
