"""The ways in which a layer profile, or something computed from it, may leave a device.

A release is a function of the profile's values, of public parameters and, for noise, of a
generator; its payload is all that leaves. From it the server reconstructs what allocators read. A
table is released row by row, as one vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.errors import FedsimError
from fedsim.privacy.noise import MECHANISMS
from fedsim.privacy.payloads import (
    make_noisy,
    make_plan,
    make_quantized,
    make_ranks,
    make_values,
    mean_noisy,
    noisy_places,
    quantized_codes,
    read_noisy,
    read_plan,
    read_public,
    read_quantized,
    read_ranks,
    read_values,
)
from fedsim.privacy.release_params import ReleaseParams
from fedsim.registry import Registry

_PUBLIC = ("public_voices", "bounds")
_NO_NOISE = "there is no noise, so no differential privacy is promised"

Make = Callable[[np.ndarray, ReleaseParams, np.random.Generator], bytes]
"""f(values (n,), params, generator) -> what leaves the device."""
Read = Callable[[bytes, ReleaseParams], np.ndarray]
"""f(payload, params) -> float64 (n,): the values that it stands for."""


@dataclass(frozen=True)
class Release:
    """One way for a profile to leave a device, and what the server reads from it."""

    make: Make | None
    """None where no single device makes it."""
    read: Read
    """What allocators take as the profile's values; of a release that gives a plan, its bit
    depths."""
    summary: str
    statement: str
    """What is promised to users, as a format string over `privacy`, the scenario's section."""
    gives: Literal["values", "order", "plan", "public"] = "values"
    """What the server learns: values in the measure's unit; only their order; only the device's own
    plan; or nothing beyond what is public."""
    settings: tuple[str, ...] | None = None
    """Keys of the section `privacy` that it reads; None for all of them."""
    plain: bool = False
    """Whether the profile leaves unchanged, in the fields of the summary itself."""
    adds_noise: bool = False
    """Whether each release costs epsilon: several are averaged, and may exceed a budget."""
    grouped: bool = False
    """Whether a group of devices makes it together, by secure aggregation."""
    mean: Callable[[Sequence[bytes], ReleaseParams], np.ndarray] | None = None
    """f(payloads of several rounds, params) -> as `read`; None where only the last is read."""
    view: Read | None = None
    """The payload as an attacker takes it, float64 (d,); None where it is what `read` returns."""

    @property
    def needs_bounds(self) -> bool:
        """Whether it reads public bounds of each value."""
        return self.settings is None or "bounds" in self.settings


RELEASES: Registry[Release] = Registry("release")


@dataclass(frozen=True)
class Released:
    """All that leaves the device, and its cost in privacy, which is None for one without noise."""

    kind: str
    payload: bytes
    epsilon: float | None = None
    delta: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return len(self.payload)


def release(
    kind: str, values: np.ndarray, params: ReleaseParams, rng: np.random.Generator
) -> Released:
    """Return what leaves the device of a profile's values (n,).

    Raises `FedsimError` for an unknown release or one that no single device makes, for values that
    are not finite or not `params.values` in number, and for parameters out of range.
    """
    chosen = RELEASES[kind]
    values = np.asarray(values, np.float64)
    if values.shape != (params.values,) or not np.isfinite(values).all():
        raise FedsimError(
            f"release {kind!r}: the profile has {values.size} values,"
            f" {int(np.isfinite(values).sum())} of them finite; give {params.values} finite ones"
        )
    if chosen.gives == "public":
        return Released(kind, b"", 0.0, 0.0)
    if chosen.make is None:
        raise FedsimError(
            f"release {kind!r} is made by a group of devices; choose another for a single one"
        )
    payload = chosen.make(values, params, rng)
    if not chosen.adds_noise:
        return Released(kind, payload)
    delta = params.delta if MECHANISMS[params.mechanism].needs_delta else 0.0
    return Released(kind, payload, params.epsilon, delta)


def restore(kind: str, payloads: Sequence[bytes], params: ReleaseParams) -> np.ndarray:
    """Return the values (n,) that the server reads from a device's releases of one profile.

    `payloads` are in the order of rounds. Noisy ones are averaged; all others are equal, and the
    last is read. Raises `FedsimError` for a payload that does not fit the parameters.
    """
    chosen = RELEASES[kind]
    if chosen.mean is not None:
        return chosen.mean(payloads, params)
    return chosen.read(payloads[-1], params)


def view(kind: str, payload: bytes, params: ReleaseParams) -> np.ndarray:
    """Return a payload as an attacker takes it, float64 (d,), without any loss."""
    chosen = RELEASES[kind]
    return (chosen.view or chosen.read)(payload, params).astype(np.float64)


for _name, _release in {
    "values": Release(
        make_values,
        read_values,
        summary="The profile as it is, 8 bytes per value.",
        statement=f"Each device sends one number per layer as it is: {_NO_NOISE}.",
        settings=(),
        plain=True,
    ),
    "quantized": Release(
        make_quantized,
        read_quantized,
        summary="A few bits per value: the nearest of even steps between public bounds (log).",
        statement="Each device sends {privacy.bits} bits per layer: " + f"{_NO_NOISE}.",
        settings=("bits", *_PUBLIC),
        view=quantized_codes,
    ),
    "noisy": Release(
        make_noisy,
        read_noisy,
        summary="Clipped to public bounds, with noise: user-level local differential privacy.",
        statement="Each device sends noisy values.",  # the guarantee says how noisy
        settings=(
            *("mechanism", "epsilon", "delta", "noise", "layers", "rounds", "budget"),
            *_PUBLIC,
        ),
        adds_noise=True,
        mean=mean_noisy,
        view=noisy_places,
    ),
    "ranks": Release(
        make_ranks,
        read_ranks,
        summary="Only the order of the layers: all that Algorithm 1 reads.",
        statement=f"Each device sends the order of its layers and no value: {_NO_NOISE}.",
        gives="order",
        settings=(),
    ),
    "plan": Release(
        make_plan,
        read_plan,
        summary="Only bit depths: the device plans for itself.",
        statement="Each device plans for itself and sends the bit depth of each layer alone: "
        f"{_NO_NOISE}.",
        gives="plan",
        settings=(),
    ),
    "cohort": Release(
        None,
        read_values,
        summary="The mean of a group, by secure aggregation: no member's own values.",
        statement="The server learns the mean of groups in which {privacy.cohort.min_members} "
        "devices or more stay to the end, by secure aggregation, and no device's own values: "
        f"{_NO_NOISE}.",
        settings=("cohort", *_PUBLIC),
        grouped=True,
    ),
    "none": Release(
        None,
        read_public,
        summary="Nothing: the server plans from public speakers.",
        statement="Nothing of a user's audio leaves the device before its test results: the plan is"
        " made from public voices, at ε = 0.",
        gives="public",
        settings=_PUBLIC,
    ),
}.items():
    RELEASES.add(_name, _release)
