"""The attacks on the server's view of one run, or of one combination of a matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedsim.audit.views import View, released_alone, released_in_groups, vectors
from fedsim.errors import FedsimError
from fedsim.privacy.attacks.attributes import infer_attribute
from fedsim.privacy.attacks.membership import judge_membership, world_scores
from fedsim.privacy.attacks.reidentification import reidentify
from fedsim.privacy.attacks.result import Finding
from fedsim.privacy.attacks.vectors import carries_nothing
from fedsim.speech.clips import ClientData
from fedsim.speech.voices import Take

ATTRIBUTES = ("gender", "accent", "language")
_MIN_SPEAKERS = 5  # per value of an attribute


def attack(view: View, targets: int) -> list[Finding]:
    """Return the findings of all attacks; one that cannot be made gives its reason.

    Re-identification and membership inference need a second session of each speaker, which not
    every corpus has.

    Args:
        view: what the server sees.
        targets: number of clients on whose clips the membership attack is made.

    Raises:
        FedsimError: if the tuning clips of a client cannot be read, or if there was no run and
            there are too few clients for a group.
    """
    released = view.released
    if released is None:
        released = view.session(view.voices.first, "session 1")
    found: list[Finding] = []
    for name in ATTRIBUTES:
        found += _infer(view, view.matrix(released, view.keys), name)
    if not view.voices.has_sessions:
        why = "a recorded corpus has no second session of its speakers"
        found.append(_not_made(view, "re-identification", "the speaker", "rank-1", why))
        found.append(_not_made(view, "membership", "a tuning clip", "AUC", why))
        return found

    def recognize() -> tuple[Finding, ...]:
        keys = view.repeatable()
        second = view.session(view.voices.second, "session 2")
        group = {key: i for i, members in enumerate(view.groups) for key in members}
        return reidentify(
            view.matrix(released, keys),
            view.matrix(second, keys),
            np.array(keys),
            view.rng("speakers"),
            release=view.release,
            clusters=np.array([group[key] for key in keys]) if view.chosen.grouped else None,
        )

    found += _tried(view, recognize, "re-identification", "the speaker", "rank-1")
    found += _tried(view, lambda: _members(view, targets), "membership", "a tuning clip", "AUC")
    return found


def _infer(view: View, released: np.ndarray, name: str) -> list[Finding]:
    """Return how well an attribute is inferred; [] if all clients share it or it is not known."""
    labels = np.array([_label(view.voices.clients[key], name) for key in view.keys])
    classes, count = np.unique(labels[labels != ""], return_counts=True)
    large = classes[count >= _MIN_SPEAKERS]
    if len(classes) < 2:
        return []
    chosen = np.isin(labels, large)

    def infer() -> tuple[Finding, ...]:
        if len(large) < 2:
            raise FedsimError(
                f"fewer than two of {len(classes)} values of {name} have {_MIN_SPEAKERS} speakers;"
                f" add speakers"
            )
        return infer_attribute(
            released[chosen],
            labels[chosen],
            np.array(view.keys)[chosen],
            view.rng(name),
            attribute=name,
            release=view.release,
        )

    return _tried(view, infer, "attribute", name, "AUC")


def _label(client: ClientData, name: str) -> str:
    """Return the value of an attribute that all clips of a client share, or ""."""
    values = {
        clip.source.speaker.accent
        if name == "accent" and isinstance(clip.source, Take)
        else getattr(clip, name, None)
        for clip in client.tuning
    }
    return str(values.pop() or "") if len(values) == 1 else ""


def _members(view: View, targets: int) -> tuple[Finding, ...]:
    """Return how well the clips that a client tuned on are distinguished from its others."""
    scores: list[np.ndarray] = []
    is_member: list[np.ndarray] = []
    clients: list[np.ndarray] = []
    rng = view.rng("members")
    is_constant = True
    keys = view.repeatable()
    for key in keys[:: max(len(keys) // targets, 1)][:targets]:
        released, chosen = _world_vectors(view, key)
        is_constant &= carries_nothing(released)
        for clip in range(chosen.shape[1]):
            inside, outside = released[chosen[:, clip]], released[~chosen[:, clip]]
            members, others = np.zeros(len(inside)), np.zeros(len(outside))
            if not carries_nothing(released):
                members, others = world_scores(inside, outside, rng)
            scores += [members, others]
            is_member += [np.ones(len(members), bool), np.zeros(len(others), bool)]
            clients.append(np.full(len(members) + len(others), key))
    found = judge_membership(
        np.concatenate(scores),
        np.concatenate(is_member),
        np.concatenate(clients),
        rng,
        release=view.release,
    )
    return tuple(_at_chance(f) for f in found) if is_constant else found


def _at_chance(finding: Finding) -> Finding:
    """Return the finding at chance: where all scores are equal, no threshold finds a member."""
    if finding.value is None:
        return finding
    note = "all releases are the same, so no clip can be distinguished from another"
    guess = finding.chance
    return replace(finding, value=guess, low=guess, high=guess, note=note)


def _world_vectors(view: View, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the server's view of each world of a client, (W, d), and its clips, bool (W, C)."""
    values, chosen = view.voices.worlds(key)
    if view.chosen.grouped:
        group = next(group for group in view.groups if key in group)
        others = view.voices.first(group)
        assert view.bounds is not None
        released = [
            released_in_groups([group], {**others, key: value}, view.bounds)[key]
            for value in values
        ]
    else:
        params = view.params(key)
        released = [
            released_alone(view.scenario, params, key, value, f"audit world {world}")
            for world, value in enumerate(values)
        ]
    return vectors(view.release, released, view.params()), chosen


def _tried(
    view: View,
    make: Callable[[], tuple[Finding, ...]],
    attack: str,
    attribute: str,
    figure: str,
) -> list[Finding]:
    """Return the findings of an attack, or why it cannot be made."""
    try:
        return list(make())
    except FedsimError as error:
        return [_not_made(view, attack, attribute, figure, str(error))]


def _not_made(view: View, attack: str, attribute: str, figure: str, why: str) -> Finding:
    return Finding(
        attack=attack,
        attribute=attribute,
        release=view.release,
        figure=figure,
        value=None,
        low=None,
        high=None,
        chance=float("nan"),
        n=len(view.keys),
        note=why,
    )
