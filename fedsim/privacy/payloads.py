"""The payload of each release: how it is made from a profile's values, and what is read from it.

Makers are f(values (n,), params, generator) -> bytes, readers f(payload, params) -> float64 (n,).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.errors import FedsimError
from fedsim.privacy.bounds import denormalize, normalize
from fedsim.privacy.digits import pack_digits, unpack_digits
from fedsim.privacy.noise import MECHANISMS, noise_scale, perturb
from fedsim.privacy.release_params import ReleaseParams

_UNIFORM_VARIANCE = 1 / 12  # of a value anywhere in [0, 1]


def numbers(payload: bytes, dtype: str, count: int) -> np.ndarray:
    """Return the `count` numbers of a payload, float64; `FedsimError` for another length."""
    expected = count * np.dtype(dtype).itemsize
    if len(payload) != expected:
        raise FedsimError(
            f"release: the payload has {len(payload)} bytes instead of {expected}; give device and "
            f"server the same parameters"
        )
    return np.frombuffer(payload, dtype).astype(np.float64)


def make_values(values: np.ndarray, params: ReleaseParams, rng: np.random.Generator) -> bytes:
    """Return the values as they are, 8 bytes each."""
    return values.astype("<f8").tobytes()


def read_values(payload: bytes, params: ReleaseParams) -> np.ndarray:
    """Return the values; also the mean of a group, which has the same form."""
    return numbers(payload, "<f8", params.values)


def make_quantized(values: np.ndarray, params: ReleaseParams, rng: np.random.Generator) -> bytes:
    """Return the nearest of evenly spaced steps between public bounds, in the logarithm."""
    steps = params.steps()
    codes = np.rint(normalize(values, params.required_bounds()) * steps).astype(int)
    return pack_digits(codes.tolist(), (steps + 1,) * params.values)


def quantized_codes(payload: bytes, params: ReleaseParams) -> np.ndarray:
    """Return the code of each value, 0 .. 2^bits - 1."""
    return np.asarray(unpack_digits(payload, (params.steps() + 1,) * params.values))


def read_quantized(payload: bytes, params: ReleaseParams) -> np.ndarray:
    """Return the values that the codes stand for."""
    return denormalize(quantized_codes(payload, params) / params.steps(), params.required_bounds())


def make_noisy(values: np.ndarray, params: ReleaseParams, rng: np.random.Generator) -> bytes:
    """Return clipped values with noise, 4 bytes each: user-level local differential privacy."""
    chosen = params.released()
    scale = noise_scale(params.mechanism, params.epsilon, params.delta, len(chosen))
    places = normalize(values, params.required_bounds())[chosen]
    return perturb(places, params.mechanism, scale, params.noise, rng).astype("<f4").tobytes()


def noisy_places(payload: bytes, params: ReleaseParams) -> np.ndarray:
    """Return the noisy position of each released value, about [0, 1]."""
    return numbers(payload, "<f4", len(params.released()))


def read_noisy(payload: bytes, params: ReleaseParams) -> np.ndarray:
    """Return the estimate of each value from one payload; see `mean_noisy`."""
    return mean_noisy([payload], params)


def mean_noisy(payloads: Sequence[bytes], params: ReleaseParams) -> np.ndarray:
    """Return the best linear estimate of each value; for one not released the middle of its bounds.

    For a position u, uniform in [0, 1] (variance 1/12), of which y is released with noise of
    variance s, the estimate is 1/2 + (1/12) / (1/12 + s) (y - 1/2): of all linear ones it has the
    minimum mean square error. With much noise it tends to the public middle; clipping alone would
    give the bounds. The noise in the mean of n releases has the variance s / n.
    """
    chosen = params.released()
    released = np.mean([noisy_places(payload, params) for payload in payloads], axis=0)
    scale = noise_scale(params.mechanism, params.epsilon, params.delta, len(chosen))
    variance = MECHANISMS[params.mechanism].variance(scale) / len(payloads)
    trust = _UNIFORM_VARIANCE / (_UNIFORM_VARIANCE + variance)
    places = np.full(params.values, 0.5)
    places[chosen] += trust * (released - 0.5)
    return denormalize(places, params.required_bounds())


def make_ranks(values: np.ndarray, params: ReleaseParams, rng: np.random.Generator) -> bytes:
    """Return the order of the values in ceil(log2 n!) bits; equal values keep their order.

    Digit i of the payload (Lehmer code) is the index of the i-th largest among those that remain.
    """
    left, places = list(range(params.values)), []
    for place in np.argsort(-values, kind="stable").tolist():
        places.append(left.index(place))
        left.pop(places[-1])
    return pack_digits(places, range(params.values, 0, -1))


def read_ranks(payload: bytes, params: ReleaseParams) -> np.ndarray:
    """Return the rank of each value: n for the largest, down to 1 for the smallest."""
    left, values = list(range(params.values)), np.empty(params.values)
    for i, place in enumerate(unpack_digits(payload, range(params.values, 0, -1))):
        values[left.pop(place)] = params.values - i
    return values


def make_plan(values: np.ndarray, params: ReleaseParams, rng: np.random.Generator) -> bytes:
    """Return the bit depth of each layer, as the device plans it."""
    if params.plan is None:
        raise FedsimError("release 'plan': the device has no planner; set params.plan")
    places = [params.depths.index(bits) for bits in params.plan(values)]
    return pack_digits(places, (len(params.depths),) * params.layers)


def read_plan(payload: bytes, params: ReleaseParams) -> np.ndarray:
    """Return the bit depth of each layer."""
    places = unpack_digits(payload, (len(params.depths),) * params.layers)
    return np.asarray(params.depths)[places]


def read_public(payload: bytes, params: ReleaseParams) -> np.ndarray:
    """Return the middle of the public bounds of each value."""
    numbers(payload, "u1", 0)
    return params.required_bounds().middle
