"""The ways in which a layer profile, or what follows from it, may leave a device.

A release is a pure function of the profile's values and of public parameters; what it returns is
all that leaves. The server makes of it what allocators read. Values of a table are released row by
row, as a vector is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.errors import FedsimError
from fedsim.privacy.bounds import denormalize, normalize
from fedsim.privacy.digits import pack_digits, unpack_digits
from fedsim.privacy.noise import MECHANISMS, noise_scale, perturb
from fedsim.privacy.release_params import ReleaseParams
from fedsim.registry import Registry

_UNIFORM_VARIANCE = 1 / 12  # of a value anywhere in [0, 1]
_PUBLIC = ("public_voices", "bounds")
_NO_NOISE = "there is no noise, so no differential privacy is promised"

Make = Callable[[np.ndarray, ReleaseParams, np.random.Generator], bytes]
"""f(values (n,), params, generator) -> what leaves the device."""
Read = Callable[[bytes, ReleaseParams], np.ndarray]
"""f(payload, params) -> float64 (n,): what it stands for."""


@dataclass(frozen=True)
class Release:
    """One way for a profile to leave a device, and what the server reads from it."""

    make: Make | None
    """None: one device by itself sends nothing of its layers."""
    read: Read
    """What allocators take for the profile's values. Where a release gives a plan, its bit
    depths."""
    summary: str
    statement: str
    """What is promised, as a format string over `privacy`, the scenario's section."""
    gives: Literal["values", "order", "plan", "public"] = "values"
    """What the server learns: values in the measure's unit; their order alone; the device's own
    plan; or nothing beyond what is public."""
    settings: tuple[str, ...] | None = None
    """Keys of the section `privacy` that it reads; None for all of them."""
    plain: bool = False
    """Whether the profile leaves as it is, in the summary's own fields."""
    adds_noise: bool = False
    """Whether each release costs epsilon, so that several are averaged and may exceed a budget."""
    grouped: bool = False
    """Whether several devices make it together, by secure aggregation."""
    mean: Callable[[Sequence[bytes], ReleaseParams], np.ndarray] | None = None
    """f(payloads of several rounds, params) -> as `read`; None reads the last payload."""
    view: Read | None = None
    """What an attacker looks at, float64 (d,); None for what `read` gives."""

    @property
    def needs_bounds(self) -> bool:
        """Whether it reads public bounds of each value."""
        return self.settings is None or "bounds" in self.settings


RELEASES: Registry[Release] = Registry("release")


@dataclass(frozen=True)
class Released:
    """All that leaves the device. What it costs is None where no noise was added."""

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

    Raises `FedsimError` for an unknown release or one that no single device makes, for values of
    another number or that are not finite, and for parameters that the release cannot have.
    """
    chosen = RELEASES[kind]
    values = np.asarray(values, np.float64)
    if values.shape != (params.values,) or not np.isfinite(values).all():
        raise FedsimError(
            f"a profile of {values.size} values, {int(np.isfinite(values).sum())} of them finite,"
            f" cannot be released as {params.values} values"
        )
    if chosen.gives == "public":
        return Released(kind, b"", 0.0, 0.0)
    if chosen.make is None:
        raise FedsimError(f"release {kind!r} is made by a group of devices, not by one alone")
    payload = chosen.make(values, params, rng)
    if not chosen.adds_noise:
        return Released(kind, payload)
    delta = params.delta if MECHANISMS[params.mechanism].needs_delta else 0.0
    return Released(kind, payload, params.epsilon, delta)


def restore(kind: str, payloads: Sequence[bytes], params: ReleaseParams) -> np.ndarray:
    """Return what the server knows, (n,), from a device's releases of one profile in order.

    Noisy ones are averaged; the others all say the same, and the last is read. Raises `FedsimError`
    for a payload that does not fit the parameters.
    """
    chosen = RELEASES[kind]
    if chosen.mean is not None:
        return chosen.mean(payloads, params)
    return chosen.read(payloads[-1], params)


def view(kind: str, payload: bytes, params: ReleaseParams) -> np.ndarray:
    """Return what an attacker looks at in a payload, float64 (d,), nothing of it lost."""
    chosen = RELEASES[kind]
    return (chosen.view or chosen.read)(payload, params).astype(np.float64)


def numbers(payload: bytes, dtype: str, count: int) -> np.ndarray:
    """Return the `count` numbers of a payload, float64; `FedsimError` for another length."""
    expected = count * np.dtype(dtype).itemsize
    if len(payload) != expected:
        raise FedsimError(
            f"a release of {len(payload)} bytes came where {expected} were expected: device and "
            f"server do not agree on its parameters"
        )
    return np.frombuffer(payload, dtype).astype(np.float64)


def _make_values(values: np.ndarray, params: ReleaseParams, rng: np.random.Generator) -> bytes:
    return values.astype("<f8").tobytes()


def _read_values(payload: bytes, params: ReleaseParams) -> np.ndarray:
    return numbers(payload, "<f8", params.values)


def _make_quantized(values: np.ndarray, params: ReleaseParams, rng: np.random.Generator) -> bytes:
    """Return the nearest of evenly spaced steps between public bounds, in the logarithm."""
    steps = params.steps()
    codes = np.rint(normalize(values, params.required_bounds()) * steps).astype(int)
    return pack_digits(codes.tolist(), (steps + 1,) * params.values)


def _codes(payload: bytes, params: ReleaseParams) -> np.ndarray:
    return np.asarray(unpack_digits(payload, (params.steps() + 1,) * params.values))


def _read_quantized(payload: bytes, params: ReleaseParams) -> np.ndarray:
    return denormalize(_codes(payload, params) / params.steps(), params.required_bounds())


def _make_noisy(values: np.ndarray, params: ReleaseParams, rng: np.random.Generator) -> bytes:
    """Return the clipped values with noise, 4 bytes each: user-level local differential privacy."""
    chosen = params.released()
    scale = noise_scale(params.mechanism, params.epsilon, params.delta, len(chosen))
    places = normalize(values, params.required_bounds())[chosen]
    return perturb(places, params.mechanism, scale, params.noise, rng).astype("<f4").tobytes()


def _noisy_places(payload: bytes, params: ReleaseParams) -> np.ndarray:
    return numbers(payload, "<f4", len(params.released()))


def _read_noisy(payload: bytes, params: ReleaseParams) -> np.ndarray:
    return _mean_noisy([payload], params)


def _mean_noisy(payloads: Sequence[bytes], params: ReleaseParams) -> np.ndarray:
    """Return the best linear guess of each value; the middle of the bounds of one not released.

    For a place u anywhere in [0, 1] (variance 1/12) of which y is released, with noise of variance
    s: u = 1/2 + (1/12) / (1/12 + s) (y - 1/2), which has the least mean square error of all linear
    guesses. With much noise it goes to the public middle, not to the bounds, as clipping alone
    would. The mean of n releases has the variance s / n.
    """
    chosen = params.released()
    released = np.mean([_noisy_places(payload, params) for payload in payloads], axis=0)
    scale = noise_scale(params.mechanism, params.epsilon, params.delta, len(chosen))
    variance = MECHANISMS[params.mechanism].variance(scale) / len(payloads)
    trust = _UNIFORM_VARIANCE / (_UNIFORM_VARIANCE + variance)
    places = np.full(params.values, 0.5)
    places[chosen] += trust * (released - 0.5)
    return denormalize(places, params.required_bounds())


def _make_ranks(values: np.ndarray, params: ReleaseParams, rng: np.random.Generator) -> bytes:
    """Return the order in ceil(log2 n!) bits; of equal values the first comes first.

    Digit i of the payload (Lehmer code) is the place of the i-th largest among what is left.
    """
    left, places = list(range(params.values)), []
    for place in np.argsort(-values, kind="stable").tolist():
        places.append(left.index(place))
        left.pop(places[-1])
    return pack_digits(places, range(params.values, 0, -1))


def _read_ranks(payload: bytes, params: ReleaseParams) -> np.ndarray:
    """Return n for the largest value, down to 1 for the smallest."""
    left, values = list(range(params.values)), np.empty(params.values)
    for i, place in enumerate(unpack_digits(payload, range(params.values, 0, -1))):
        values[left.pop(place)] = params.values - i
    return values


def _make_plan(values: np.ndarray, params: ReleaseParams, rng: np.random.Generator) -> bytes:
    if params.plan is None:
        raise FedsimError("release 'plan': the device was given no planner; set params.plan")
    places = [params.depths.index(bits) for bits in params.plan(values)]
    return pack_digits(places, (len(params.depths),) * params.layers)


def _read_plan(payload: bytes, params: ReleaseParams) -> np.ndarray:
    places = unpack_digits(payload, (len(params.depths),) * params.layers)
    return np.asarray(params.depths)[places]


def _read_public(payload: bytes, params: ReleaseParams) -> np.ndarray:
    numbers(payload, "u1", 0)
    return params.required_bounds().middle


for _name, _release in {
    "values": Release(
        _make_values,
        _read_values,
        summary="The profile as it is, 8 bytes per value.",
        statement=f"Each device sends one number per layer as it is: {_NO_NOISE}.",
        settings=(),
        plain=True,
    ),
    "quantized": Release(
        _make_quantized,
        _read_quantized,
        summary="A few bits per value: the nearest of even steps between public bounds (log).",
        statement="Each device sends {privacy.bits} bits per layer: " + f"{_NO_NOISE}.",
        settings=("bits", *_PUBLIC),
        view=_codes,
    ),
    "noisy": Release(
        _make_noisy,
        _read_noisy,
        summary="Clipped to public bounds, with noise: user-level local differential privacy.",
        statement="Each device sends noisy values.",  # the guarantee says how noisy
        settings=(
            *("mechanism", "epsilon", "delta", "noise", "layers", "rounds", "budget"),
            *_PUBLIC,
        ),
        adds_noise=True,
        mean=_mean_noisy,
        view=_noisy_places,
    ),
    "ranks": Release(
        _make_ranks,
        _read_ranks,
        summary="The order of the layers alone: all that Algorithm 1 looks at.",
        statement=f"Each device sends the order of its layers and no value: {_NO_NOISE}.",
        gives="order",
        settings=(),
    ),
    "plan": Release(
        _make_plan,
        _read_plan,
        summary="Bit depths alone: the device plans for itself.",
        statement="Each device plans for itself and sends the bit depth of each layer alone: "
        f"{_NO_NOISE}.",
        gives="plan",
        settings=(),
    ),
    "cohort": Release(
        None,
        _read_values,
        summary="The mean of a group, by secure aggregation: no member's own values.",
        statement="The server learns the mean of groups in which {privacy.cohort.min_members} "
        "devices or more stay to the end, by secure aggregation, and no device's own values: "
        f"{_NO_NOISE}.",
        settings=("cohort", *_PUBLIC),
        grouped=True,
    ),
    "none": Release(
        None,
        _read_public,
        summary="Nothing: the server plans from public speakers.",
        statement="Nothing of a user's audio leaves the device before its test results: the plan is"
        " made from public voices, at ε = 0.",
        gives="public",
        settings=_PUBLIC,
    ),
}.items():
    RELEASES.add(_name, _release)
