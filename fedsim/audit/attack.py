"""The attacks on what one run, or one combination of a matrix, lets the server see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fedsim.audit.views import Told, told_alone, told_in_groups, vectors
from fedsim.audit.voices import Voices
from fedsim.base.seeds import client_rng
from fedsim.errors import FedsimError
from fedsim.privacy.attacks.attributes import infer_attribute
from fedsim.privacy.attacks.membership import judge_membership, world_scores
from fedsim.privacy.attacks.reidentification import reidentify
from fedsim.privacy.attacks.result import Finding
from fedsim.privacy.attacks.vectors import carries_nothing
from fedsim.privacy.bounds import Bounds
from fedsim.privacy.releases import Terms
from fedsim.quant.allocation import Sizes, allocate
from fedsim.scenario import Devices
from fedsim.scenario.privacy import COHORT, released_allocation
from fedsim.scenario.schema import Scenario
from fedsim.speech.corpus import ClientData
from fedsim.speech.voices import Take
from fedsim.terms import release_terms
from server.cohort import make_groups

ATTRIBUTES = ("gender", "accent", "language")
_MEMBERS_OF_A_CLASS = 5  # fewer are no class to be told from others


@dataclass(frozen=True)
class View:
    """One scenario without a matrix, and the server's view of its clients."""

    scenario: Scenario
    voices: Voices
    bounds: Bounds | None
    sizes: Sizes
    """Of model files, for a device that plans itself."""
    keys: tuple[str, ...]
    """Of the clients that are attacked, sorted."""
    told: Mapping[str, Told] | None = None
    """What each told in a run; None where there was none: it is then computed."""

    @property
    def release(self) -> str:
        """Name of the release."""
        return self.scenario.privacy.release

    def terms(self, client: str = "") -> Terms:
        """Return the terms of a client's release; only with a client can it plan."""
        layers = len(self.voices.model.layers)
        if not client:
            return release_terms(self.scenario, layers, self.bounds)
        limits = Devices(self.scenario, list(self.voices.clients))[client]
        allocation, order = released_allocation(self.scenario)
        sizes = self.sizes.restricted(limits.bit_depths)

        def plan(values: np.ndarray) -> Sequence[int]:
            return allocate(allocation, values, sizes, limits.budget_bytes, order=order)

        return release_terms(self.scenario, layers, self.bounds, plan)

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Of a cohort: those of the run, whose members share a mean, else those it would draw.

        A group of which fewer finished than a mean may be of is none: it would show single devices.
        """
        if self.release != COHORT:
            return ()
        said = self.scenario.privacy.cohort
        if self.told is None:
            drawn = make_groups(list(self.voices.clients), said.size, self.scenario.seed)
        else:
            of_mean: defaultdict[bytes, list[str]] = defaultdict(list)
            for key in self.keys:
                of_mean[b"".join(self.told[key])].append(key)
            drawn = list(of_mean.values())
        return tuple(tuple(group) for group in drawn if len(group) >= said.least)

    def followed(self) -> tuple[str, ...]:
        """Return the clients whose releases can be made again.

        Raises `FedsimError` if there is none: of a cohort too few may have finished.
        """
        if self.release != COHORT:
            return self.keys
        members = {key for group in self.groups for key in group}
        found = tuple(key for key in self.keys if key in members)
        if not found:
            said = self.scenario.privacy.cohort
            raise FedsimError(
                f"{len(self.keys)} clients finished, and no group of {said.size} has {said.least}"
                f" of them, of which a mean may be; run more clients, or make privacy.cohort.size"
                f" smaller"
            )
        return found

    def session(
        self, sense: Callable[[Sequence[str]], Mapping[str, np.ndarray]], purpose: str
    ) -> dict[str, Told]:
        """Return what the clients that can be followed tell of what `sense` finds in each.

        Raises `FedsimError` if there is none, and as `sense` does.
        """
        keys = self.followed()
        if self.release == COHORT:
            assert self.bounds is not None
            groups = [group for group in self.groups if set(group) & set(keys)]
            values = sense([key for group in groups for key in group])
            return told_in_groups(groups, values, self.bounds)
        values = sense(keys)
        return {
            key: told_alone(self.scenario, self.terms(key), key, values[key], f"audit {purpose}")
            for key in keys
        }

    def matrix(self, told: Mapping[str, Told], keys: Sequence[str]) -> np.ndarray:
        """Return the vectors of clients, in the order of `keys`."""
        return vectors(self.release, [told.get(key, ()) for key in keys], self.terms())

    def rng(self, attack: str) -> np.random.Generator:
        """Return the generator of an attack: the same for every release."""
        return client_rng(self.scenario.seed, "", f"audit {attack}")


def attack(view: View, targets: int) -> list[Finding]:
    """Return what all attacks find; those that cannot be made say why.

    A second session needs more of each speaker than the run has heard; where there is no more, the
    attacks that need it cannot be made.

    Args:
        view: what the server sees.
        targets: clients whose clips are asked for by the membership attack.

    Raises:
        FedsimError: if the tuning clips of a client cannot be read, or there was no run and there
            are too few clients for a group.
    """
    told = view.told
    if told is None:
        told = view.session(view.voices.first, "session 1")
    found: list[Finding] = []
    for name in ATTRIBUTES:
        found += _infer(view, view.matrix(told, view.keys), name)
    if not view.voices.has_sessions:
        why = "a recorded corpus has no second session of its speakers"
        found.append(_not_made(view, "re-identification", "the speaker", "rank-1", why))
        found.append(_not_made(view, "membership", "a tuning clip", "AUC", why))
        return found

    def recognize() -> tuple[Finding, ...]:
        keys = view.followed()
        second = view.session(view.voices.second, "session 2")
        group = {key: i for i, members in enumerate(view.groups) for key in members}
        return reidentify(
            view.matrix(told, keys),
            view.matrix(second, keys),
            np.array(keys),
            view.rng("speakers"),
            release=view.release,
            clusters=np.array([group[key] for key in keys]) if view.release == COHORT else None,
        )

    found += _tried(view, recognize, "re-identification", "the speaker", "rank-1")
    found += _tried(view, lambda: _members(view, targets), "membership", "a tuning clip", "AUC")
    return found


def _infer(view: View, told: np.ndarray, name: str) -> list[Finding]:
    """Return how well an attribute is inferred; nothing where all clients share it."""
    labels = np.array([_label(view.voices.clients[key], name) for key in view.keys])
    classes, count = np.unique(labels[labels != ""], return_counts=True)
    large = classes[count >= _MEMBERS_OF_A_CLASS]
    if len(classes) < 2:
        return []
    chosen = np.isin(labels, large)

    def infer() -> tuple[Finding, ...]:
        if len(large) < 2:
            raise FedsimError(
                f"of {len(classes)} values of {name} fewer than two have {_MEMBERS_OF_A_CLASS}"
                f" speakers; add speakers"
            )
        return infer_attribute(
            told[chosen],
            labels[chosen],
            np.array(view.keys)[chosen],
            view.rng(name),
            attribute=name,
            release=view.release,
        )

    return _tried(view, infer, "attribute", name, "AUC")


def _label(client: ClientData, name: str) -> str:
    """Return the one value of an attribute that all clips of a client share, else nothing."""
    values = {
        clip.source.speaker.accent
        if name == "accent" and isinstance(clip.source, Take)
        else getattr(clip, name, None)
        for clip in client.tuning
    }
    return str(values.pop() or "") if len(values) == 1 else ""


def _members(view: View, targets: int) -> tuple[Finding, ...]:
    """Return how well clips that a client tuned on are told from others of its own."""
    scores: list[np.ndarray] = []
    is_member: list[np.ndarray] = []
    whose: list[np.ndarray] = []
    rng = view.rng("members")
    is_silent = True
    keys = view.followed()
    for key in keys[:: max(len(keys) // targets, 1)][:targets]:
        told, chosen = _world_vectors(view, key)
        is_silent &= carries_nothing(told)
        for clip in range(chosen.shape[1]):
            inside, outside = told[chosen[:, clip]], told[~chosen[:, clip]]
            members, others = np.zeros(len(inside)), np.zeros(len(outside))
            if not carries_nothing(told):
                members, others = world_scores(inside, outside, rng)
            scores += [members, others]
            is_member += [np.ones(len(members), bool), np.zeros(len(others), bool)]
            whose.append(np.full(len(members) + len(others), key))
    found = judge_membership(
        np.concatenate(scores),
        np.concatenate(is_member),
        np.concatenate(whose),
        rng,
        release=view.release,
    )
    return tuple(_at_chance(f) for f in found) if is_silent else found


def _at_chance(finding: Finding) -> Finding:
    """Return the finding of an attack that could only guess: with ties alone no member is found."""
    if finding.value is None:
        return finding
    note = "all releases are the same, so no clip can be told from another"
    guess = finding.chance
    return replace(finding, value=guess, low=guess, high=guess, note=note)


def _world_vectors(view: View, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what the server sees in each world of a client, (W, d), and its clips, (W, C)."""
    values, chosen = view.voices.worlds(key)
    if view.release == COHORT:
        group = next(group for group in view.groups if key in group)
        others = view.voices.first(group)
        assert view.bounds is not None
        told = [
            told_in_groups([group], {**others, key: value}, view.bounds)[key] for value in values
        ]
    else:
        terms = view.terms(key)
        told = [
            told_alone(view.scenario, terms, key, value, f"audit world {world}")
            for world, value in enumerate(values)
        ]
    return vectors(view.release, told, view.terms()), chosen


def _tried(
    view: View,
    make: Callable[[], tuple[Finding, ...]],
    attack: str,
    attribute: str,
    figure: str,
) -> list[Finding]:
    """Return what an attack finds, or why it cannot be made: too small a sample, no more clips."""
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
