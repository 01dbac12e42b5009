"""The attacks on what one run, or one combination of a matrix, lets the server see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fedsim.audit.views import Payloads, released_alone, released_in_groups, vectors
from fedsim.audit.voices import Voices
from fedsim.base.seeds import client_rng
from fedsim.errors import FedsimError
from fedsim.privacy.attacks.attributes import infer_attribute
from fedsim.privacy.attacks.membership import judge_membership, world_scores
from fedsim.privacy.attacks.reidentification import reidentify
from fedsim.privacy.attacks.result import Finding
from fedsim.privacy.attacks.vectors import carries_nothing
from fedsim.privacy.bounds import Bounds
from fedsim.privacy.release_params import ReleaseParams
from fedsim.privacy.releases import Release
from fedsim.privacy.secure_aggregation.groups import make_groups
from fedsim.quant.allocation import Sizes
from fedsim.scenario.schema import Scenario
from fedsim.speech.clips import ClientData
from fedsim.speech.voices import Take
from fedsim.study.devices import Devices
from fedsim.study.release_params import device_planner, release_params

ATTRIBUTES = ("gender", "accent", "language")
_MEMBERS_OF_A_CLASS = 5  # too few to be told apart from others


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
    released: Mapping[str, Payloads] | None = None
    """What each released in a run; None where there was none: it is then computed."""

    @property
    def release(self) -> str:
        """Name of the release."""
        return self.scenario.privacy.release

    @property
    def chosen(self) -> Release:
        """The registry entry of the release."""
        return self.scenario.privacy.chosen

    def params(self, client: str = "") -> ReleaseParams:
        """Return the parameters of a client's release; only with a client can it plan."""
        layers = len(self.voices.model.layers)
        if not client:
            return release_params(self.scenario, layers, self.bounds)
        limits = Devices(self.scenario, list(self.voices.clients))[client]
        plan = device_planner(self.scenario, self.sizes, limits)
        return release_params(self.scenario, layers, self.bounds, plan)

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Of a cohort: those of the run, whose members share a mean, else those it would draw.

        A group of which fewer finished than a mean may be of is none: it would show single devices.
        """
        if not self.chosen.grouped:
            return ()
        cohort = self.scenario.privacy.cohort
        if self.released is None:
            drawn = make_groups(list(self.voices.clients), cohort.size, self.scenario.seed)
        else:
            of_mean: defaultdict[bytes, list[str]] = defaultdict(list)
            for key in self.keys:
                of_mean[b"".join(self.released[key])].append(key)
            drawn = list(of_mean.values())
        return tuple(tuple(group) for group in drawn if len(group) >= cohort.min_members)

    def followed(self) -> tuple[str, ...]:
        """Return the clients whose releases can be made again.

        Raises `FedsimError` if there is none: of a cohort too few may have finished.
        """
        if not self.chosen.grouped:
            return self.keys
        members = {key for group in self.groups for key in group}
        found = tuple(key for key in self.keys if key in members)
        if not found:
            cohort = self.scenario.privacy.cohort
            raise FedsimError(
                f"{len(self.keys)} clients finished, and no group of {cohort.size} has"
                f" {cohort.min_members} of them, the fewest that a mean may be taken of; run more"
                f" clients, or make privacy.cohort.size smaller"
            )
        return found

    def session(
        self, sense: Callable[[Sequence[str]], Mapping[str, np.ndarray]], purpose: str
    ) -> dict[str, Payloads]:
        """Return what the clients that can be followed tell of what `sense` finds in each.

        Raises `FedsimError` if there is none, and as `sense` does.
        """
        keys = self.followed()
        if self.chosen.grouped:
            assert self.bounds is not None
            groups = [group for group in self.groups if set(group) & set(keys)]
            values = sense([key for group in groups for key in group])
            return released_in_groups(groups, values, self.bounds)
        values = sense(keys)
        return {
            key: released_alone(
                self.scenario, self.params(key), key, values[key], f"audit {purpose}"
            )
            for key in keys
        }

    def matrix(self, released: Mapping[str, Payloads], keys: Sequence[str]) -> np.ndarray:
        """Return the vectors of clients, in the order of `keys`."""
        return vectors(self.release, [released.get(key, ()) for key in keys], self.params())

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
        keys = view.followed()
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
            released[chosen],
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
    """Return how well clips that a client tuned on are told apart from others of its own."""
    scores: list[np.ndarray] = []
    is_member: list[np.ndarray] = []
    whose: list[np.ndarray] = []
    rng = view.rng("members")
    is_silent = True
    keys = view.followed()
    for key in keys[:: max(len(keys) // targets, 1)][:targets]:
        released, chosen = _world_vectors(view, key)
        is_silent &= carries_nothing(released)
        for clip in range(chosen.shape[1]):
            inside, outside = released[chosen[:, clip]], released[~chosen[:, clip]]
            members, others = np.zeros(len(inside)), np.zeros(len(outside))
            if not carries_nothing(released):
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
    if view.chosen.grouped:
        group = next(group for group in view.groups if key in group)
        others = view.voices.first(group)
        assert view.bounds is not None
        released = [
            released_in_groups([group], {**others, key: value}, view.bounds)[key]
            for value in values
        ]
    else:
        terms = view.params(key)
        released = [
            released_alone(view.scenario, terms, key, value, f"audit world {world}")
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
