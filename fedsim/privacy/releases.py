"""The ways in which a sensitivity summary, or what follows from it, may leave a device.

A release is a pure function of the summary and of terms that are public; what it returns is all
that leaves. The server makes of it what Algorithm 1 wants. `cohort`, where several devices make one
release together, is in `fedsim.privacy.cohort`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.errors import FedsimError
from fedsim.privacy.bounds import Bounds, denormalize, normalize
from fedsim.privacy.digits import pack_digits, unpack_digits
from fedsim.privacy.noise import MECHANISMS, noise_scale, perturb
from fedsim.registry import Registry

_UNIFORM_VARIANCE = 1 / 12  # of a value anywhere in [0, 1]


@dataclass(frozen=True, eq=False)
class Terms:
    """What device and server agree on before any audio is heard; each release reads its part."""

    layers: int
    """L."""
    bounds: Bounds | None = None
    """quantized, noisy, none: the public range of each layer."""
    bits: int = 8
    """quantized: bits a value."""
    mechanism: str = "gaussian"
    """noisy: distribution of the noise."""
    epsilon: float = 1.0
    delta: float = 1e-6
    """noisy: what a release may cost."""
    noise: str = "seeded"
    """noisy: where the noise comes from."""
    chosen: tuple[int, ...] | None = None
    """noisy: the layers that are released, so that fewer share the noise; None: all."""
    depths: tuple[int, ...] = ()
    """plan: the legal bit depths."""
    plan: Callable[[np.ndarray], Sequence[int]] | None = None
    """plan, on the device: sensitivities (L,) -> bit depth of each layer."""


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


Release = Callable[[np.ndarray, Terms, np.random.Generator], Released]
RELEASES: Registry[Release] = Registry("release")
"""name -> f(sensitivities (L,), terms, generator) -> what leaves the device."""

Reading = Callable[[bytes, Terms], np.ndarray]
READINGS: Registry[Reading] = Registry("reading")
"""name -> f(payload, terms) -> sensitivities, float64 (L,), that `allocate` takes.

Of `plan` they are the bit depths themselves, int64 (L,)."""


def release(kind: str, sensitivity: np.ndarray, terms: Terms, rng: np.random.Generator) -> Released:
    """Return what leaves the device of its sensitivities (L,).

    Raises `FedsimError` for an unknown release, a summary of another length or with a value that is
    not finite, or terms that lack what the release needs.
    """
    values = np.asarray(sensitivity, np.float64)
    if values.shape != (terms.layers,) or not np.isfinite(values).all():
        raise FedsimError(
            f"a summary of {values.size} values, {int(np.isfinite(values).sum())} of them finite,"
            f" cannot be released for a model of {terms.layers} layers"
        )
    return RELEASES[kind](values, terms, rng)


def restore_rounds(kind: str, payloads: Sequence[bytes], terms: Terms) -> np.ndarray:
    """Return what the server knows, (L,), from a device's releases of one summary in order.

    Noisy ones are averaged; of the others each says the same, and the last is read. Raises
    `FedsimError` for a payload that does not fit the terms.
    """
    if kind != "noisy":
        return READINGS[kind](payloads[-1], terms)
    told = [_numbers(payload, "<f4", len(_chosen(terms))) for payload in payloads]
    return _best_guess(np.mean(told, axis=0), len(told), terms)


def restore(released: Released, terms: Terms) -> np.ndarray:
    """Return what the server knows of the sensitivities, (L,), from what left the device.

    Raises `FedsimError` for a payload that does not fit the terms.
    """
    return READINGS[released.kind](released.payload, terms)


@RELEASES.register("values")
def values_(sensitivity: np.ndarray, terms: Terms, rng: np.random.Generator) -> Released:
    """The summary as it is, 8 bytes a layer."""
    return Released("values", sensitivity.astype("<f8").tobytes())


@READINGS.register("values")
def read_values(payload: bytes, terms: Terms) -> np.ndarray:
    """Return the summary."""
    return _numbers(payload, "<f8", terms.layers)


@RELEASES.register("quantized")
def quantized(sensitivity: np.ndarray, terms: Terms, rng: np.random.Generator) -> Released:
    """A few bits a layer: the nearest of evenly spaced steps between public bounds (in the log)."""
    steps = _steps(terms)
    codes = np.rint(normalize(sensitivity, _bounds(terms)) * steps).astype(int)
    return Released("quantized", pack_digits(codes.tolist(), (steps + 1,) * terms.layers))


@READINGS.register("quantized")
def read_quantized(payload: bytes, terms: Terms) -> np.ndarray:
    """Return the values of the steps."""
    steps = _steps(terms)
    codes = unpack_digits(payload, (steps + 1,) * terms.layers)
    return denormalize(np.asarray(codes) / steps, _bounds(terms))


@RELEASES.register("noisy")
def noisy(sensitivity: np.ndarray, terms: Terms, rng: np.random.Generator) -> Released:
    """Clipped to public bounds, with noise: user-level local differential privacy; 4 bytes a layer.

    Raises `FedsimError` for terms that name no mechanism, noise or guarantee.
    """
    chosen = _chosen(terms)
    scale = noise_scale(terms.mechanism, terms.epsilon, terms.delta, len(chosen))
    places = normalize(sensitivity, _bounds(terms))[chosen]
    told = perturb(places, terms.mechanism, scale, terms.noise, rng)
    delta = terms.delta if MECHANISMS[terms.mechanism]().needs_delta else 0.0
    return Released("noisy", told.astype("<f4").tobytes(), terms.epsilon, delta)


@READINGS.register("noisy")
def read_noisy(payload: bytes, terms: Terms) -> np.ndarray:
    """Return the best linear guess of each value; the middle of the bounds where nothing was told.

    For a place u anywhere in [0, 1] (variance 1/12) that is told as y, with noise of variance s:
    u = 1/2 + (1/12) / (1/12 + s) (y - 1/2), which has the least mean square error of all linear
    guesses. With much noise it goes to the public middle, not to the bounds, as clipping alone
    would. The mean of n releases has the variance s / n.
    """
    return _best_guess(_numbers(payload, "<f4", len(_chosen(terms))), 1, terms)


def _best_guess(told: np.ndarray, rounds: int, terms: Terms) -> np.ndarray:
    chosen = _chosen(terms)
    scale = noise_scale(terms.mechanism, terms.epsilon, terms.delta, len(chosen))
    variance = MECHANISMS[terms.mechanism]().variance(scale) / rounds
    trust = _UNIFORM_VARIANCE / (_UNIFORM_VARIANCE + variance)
    places = np.full(terms.layers, 0.5)
    places[chosen] += trust * (told - 0.5)
    return denormalize(places, _bounds(terms))


@RELEASES.register("ranks")
def ranks(sensitivity: np.ndarray, terms: Terms, rng: np.random.Generator) -> Released:
    """The order of the layers alone, in ceil(log2 L!) bits: all that Algorithm 1 looks at.

    Of equal values the first layer comes first, as in Algorithm 1. Digit i of the payload (Lehmer
    code) is the place of the i-th largest among the layers that are left.
    """
    left, places = list(range(terms.layers)), []
    for layer in np.argsort(-sensitivity, kind="stable").tolist():
        places.append(left.index(layer))
        left.pop(places[-1])
    return Released("ranks", pack_digits(places, range(terms.layers, 0, -1)))


@READINGS.register("ranks")
def read_ranks(payload: bytes, terms: Terms) -> np.ndarray:
    """Return L for the largest layer, down to 1 for the smallest."""
    left, values = list(range(terms.layers)), np.empty(terms.layers)
    places = unpack_digits(payload, range(terms.layers, 0, -1))
    for i, place in enumerate(places):
        values[left.pop(place)] = terms.layers - i
    return values


@RELEASES.register("plan")
def plan(sensitivity: np.ndarray, terms: Terms, rng: np.random.Generator) -> Released:
    """Bit depths alone, in ceil(L log2 D) bits: the device runs Algorithm 1 itself."""
    if terms.plan is None:
        raise FedsimError("a device that releases its plan needs to know how to make one: no plan")
    bits = terms.plan(sensitivity)
    places = [terms.depths.index(b) for b in bits]
    return Released("plan", pack_digits(places, (len(terms.depths),) * terms.layers))


@READINGS.register("plan")
def read_plan(payload: bytes, terms: Terms) -> np.ndarray:
    """Return the bit depth of each layer."""
    places = unpack_digits(payload, (len(terms.depths),) * terms.layers)
    return np.asarray(terms.depths)[places]


@RELEASES.register("none")
def none(sensitivity: np.ndarray, terms: Terms, rng: np.random.Generator) -> Released:
    """Nothing: the server plans from public speakers."""
    return Released("none", b"", 0.0, 0.0)


@READINGS.register("none")
def read_none(payload: bytes, terms: Terms) -> np.ndarray:
    """Return the middle of the public bounds."""
    _numbers(payload, "u1", 0)
    return _bounds(terms).middle


def _bounds(terms: Terms) -> Bounds:
    if terms.bounds is None or terms.bounds.low.size != terms.layers:
        found = "none" if terms.bounds is None else str(terms.bounds.low.size)
        raise FedsimError(
            f"this release needs public bounds of {terms.layers} layers, and there are {found}"
        )
    return terms.bounds


def _steps(terms: Terms) -> int:
    if not 1 <= terms.bits <= 32:
        raise FedsimError(f"a release of {terms.bits} bits a value: use 1 to 32")
    return (1 << terms.bits) - 1


def _chosen(terms: Terms) -> list[int]:
    chosen = range(terms.layers) if terms.chosen is None else terms.chosen
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(terms.layers)):
        raise FedsimError(
            f"layers {tuple(chosen)} cannot be released: name one or more of 0 to"
            f" {terms.layers - 1}, each once"
        )
    return list(chosen)


def _numbers(payload: bytes, kind: str, count: int) -> np.ndarray:
    wanted = count * np.dtype(kind).itemsize
    if len(payload) != wanted:
        raise FedsimError(
            f"a release of {len(payload)} bytes came where {wanted} were due: device and server"
            " do not agree on its terms"
        )
    return np.frombuffer(payload, kind).astype(np.float64)
