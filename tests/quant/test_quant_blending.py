"""Blended second moments: what they are, and that few of them exist at a time."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from rounding_toys import inputs, moments_of, weights

from fedsim.quant.blending import blend, mixed
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.moments import MIN_ROWS, LayerMoments, usable
from fedsim.quant.rounding.plan import round_plan, without_moments

HOW = WeightFormat("group_128", True)


def random_moments(names: str, rows: int, seed: int) -> dict[str, LayerMoments]:
    rng = np.random.default_rng(seed)
    return {
        name: LayerMoments(rng.standard_normal((1, 3, 3)).astype(np.float32), rows)
        for name in names
    }


def test_blended_moments():
    own, public = random_moments("ab", 40, 1), random_moments("bc", 500, 2)
    found = blend(own, public, 0.25)
    assert set(found) == set("abc")
    assert found["a"] is own["a"]
    assert found["c"] is public["c"]
    expected = 0.25 * own["b"].mean + 0.75 * public["b"].mean
    np.testing.assert_allclose(found["b"].mean, expected, rtol=1e-6)
    assert found["b"].mean.dtype == np.float32
    assert found["b"].nbytes == found["b"].mean.nbytes
    assert found["b"].rows == 540
    for weight, only in ((1.0, own), (0.0, public)):
        np.testing.assert_array_equal(blend(own, public, weight)["b"].mean, only["b"].mean)


def test_layers_that_share_moments_share_their_blend():
    """Query and key share them in both; the value in one of the two alone."""
    own, public = random_moments("abc", 40, 1), random_moments("abc", 500, 2)
    own |= {"b": own["a"], "c": own["a"]}
    public |= {"b": public["a"]}
    found = blend(own, public, 0.25)
    assert found["a"] is found["b"]
    assert found["c"] is not found["a"]
    for name in "abc":
        expected = 0.25 * own[name].mean + 0.75 * public[name].mean
        np.testing.assert_allclose(found[name].mean, expected, rtol=1e-6)


def test_only_moments_that_are_needed_are_asked_for():
    own, public = random_moments("ab", 40, 1), random_moments("bc", 500, 2)

    def never() -> dict[str, LayerMoments]:
        raise AssertionError

    assert mixed("public", never, lambda: public, 0.5) is public
    assert mixed("own", lambda: own, never, 0.5) is own
    both = mixed("blend", lambda: own, lambda: public, 0.5)
    np.testing.assert_array_equal(both["b"].mean, blend(own, public, 0.5)["b"].mean)


class Asked:
    """Public moments that count how often they are read."""

    def __init__(self, mean: np.ndarray, rows: int) -> None:
        self._mean, self.rows, self.nbytes, self.times = mean, rows, mean.nbytes, 0

    @property
    def mean(self) -> np.ndarray:
        self.times += 1
        return self._mean


MIXED = (
    Layer("q", "linear", (6, 40)),
    Layer("conv", "conv1d", (4, 5, 3)),
    Layer("grouped", "conv1d", (4, 10, 2)),
    Layer("table", "embedding", (9, 8)),
    Layer("k", "linear", (6, 40)),
    Layer("few", "linear", (6, 40)),
    Layer("up", "linear", (20, 6)),
    Layer("v", "linear", (6, 40)),
    Layer("other", "linear", (6, 40)),
)


def of_layers(n: int, seed: int) -> dict[str, LayerMoments]:
    """Moments of `MIXED`; query, key and value share theirs, and `few` has none to speak of."""
    made = {
        "q": moments_of(inputs(n, 40, seed)),
        "conv": moments_of(inputs(n, 15, seed + 1)),
        "grouped": moments_of(inputs(n, 20, seed + 2), inputs(n, 20, seed + 3)),
        "few": moments_of(inputs(n, 40, seed + 4)),
        "up": moments_of(inputs(n, 6, seed + 5)),
        "other": moments_of(inputs(n, 40, seed + 6)),
    }
    rows = {name: MIN_ROWS // 2 - 1 if name == "few" else n for name in made}
    found = {name: LayerMoments(mean, rows[name]) for name, mean in made.items()}
    return found | {"k": found["q"], "v": found["q"]}


@pytest.mark.parametrize("part_bytes", [1, 7_000, 13_000, 1 << 30])
@pytest.mark.parametrize("how", [HOW, WeightFormat("per_tensor")], ids=str)
def test_parts_of_any_size_round_alike(part_bytes, how):
    """Beside one layer alone, with the moments of all layers in memory."""
    full = {layer.name: weights(*layer.shape, seed=i) for i, layer in enumerate(MIXED)}
    own = of_layers(100, 1)
    public = {name: Asked(one.mean, one.rows) for name, one in of_layers(90, 20).items()}
    public |= {"k": public["q"], "v": public["q"]}
    lazy, bits = blend(own, public, 0.4), (2, 3, 4, 5, 6, 7, 2, 3, 4)
    assert without_moments(MIXED, "compensated", lazy) == ("table", "few")
    assert not any(one.times for one in public.values())
    found = round_plan(full, MIXED, bits, "compensated", how, lazy, part_bytes=part_bytes)
    for layer, depth, packed in zip(MIXED, bits, found, strict=True):
        one = usable(lazy, layer)
        held = {} if one is None else {layer.name: LayerMoments(one.mean, one.rows)}
        (alone,) = round_plan(full, [layer], [depth], "compensated", how, held)
        assert (packed.shape, packed.bits) == (alone.shape, alone.bits)
        assert packed.payload.tobytes() == alone.payload.tobytes()
        assert packed.scales.tobytes() == alone.scales.tobytes()
        if how.zero_points:
            assert packed.zeros.tobytes() == alone.zeros.tobytes()


def test_few_blends_exist_at_a_time():
    """Of 48 layers; and those that share one are blended once."""
    k = 256
    layers = [Layer(f"{i}", "linear", (8, k)) for i in range(48)]
    full = {layer.name: weights(8, k, seed=i) for i, layer in enumerate(layers)}
    means = [moments_of(inputs(300, k, seed)) for seed in range(2)]
    own = {layer.name: LayerMoments(means[0].copy(), 300) for layer in layers}
    public = {layer.name: Asked(means[1].copy(), 300) for layer in layers}
    for twin, first in (("1", "0"), ("2", "0")):
        own[twin], public[twin] = own[first], public[first]
    one = means[0].nbytes
    tracemalloc.start()
    try:
        blends = blend(own, public, 0.5)
        before = tracemalloc.get_traced_memory()[0]
        round_plan(full, layers, (3,) * 48, "compensated", HOW, blends, part_bytes=2 * one)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < 16 * one  # two blends, and float64 factors, copies and sums of them
    assert [asked.times for asked in public.values()] == [1] * 48
