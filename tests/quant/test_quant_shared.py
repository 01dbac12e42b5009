"""Forward passes that several clients share: each client's results are those of a pass alone.

Up to the last digits of the network's products, in which the number of rows differs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from quant_toys import Talker, Toy, clips, n_hooks, talk

from fedsim.errors import FedsimError
from fedsim.quant.calibrators import needs
from fedsim.quant.measures import MEASURES
from fedsim.quant.onepass import one_pass
from fedsim.quant.sensitivity import Sensing
from fedsim.quant.shared import shared_batches, shared_pass

LENGTHS = [[61, 90, 47], [90, 52], [80, 90, 90], [33]]
"""Three clients whose first batches are of one shape, and one of another; the third has a second
batch that is longer than the first client's."""


def of_clients() -> list[list]:
    batches = [[talk(clips(lengths, seed=i))] for i, lengths in enumerate(LENGTHS)]
    batches[0].append(talk(clips([70, 50], seed=10)))
    batches[2].append(talk(clips([75, 70], seed=11)))
    return batches


def close(found, expected) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def equal(found, expected) -> None:
    """Two passes gave the same."""
    for name in ("values", "quantiles"):
        one, other = getattr(found.found, name), getattr(expected.found, name)
        assert (one is None) == (other is None)
        if one is not None:
            close(one, other)
    for name, seen in (expected.observed or {}).items():
        own = found.observed[name]
        close([own.low, own.high], [seen.low, seen.high])
        assert (own.rows is None) == (seen.rows is None)
        if seen.rows is not None:
            close(own.rows.numpy(), seen.rows.numpy())
    assert (found.moments or {}).keys() == (expected.moments or {}).keys()
    for name, moments in (expected.moments or {}).items():
        close(found.moments[name].mean, moments.mean)
        assert found.moments[name].rows == moments.rows


def compared(sensing, calibrations, *, moments) -> None:
    toy, wanted = Toy(Talker()), needs(calibrations)
    expected = [
        one_pass(toy, batches, sensing.run, wanted, moments=moments) for batches in of_clients()
    ]
    toy.forwards = 0
    found = shared_pass(toy, of_clients(), sensing, wanted, moments=moments)
    assert toy.forwards == 4  # three of the four first batches are of one shape
    for one, other in zip(found, expected, strict=True):
        equal(one, other)
    assert n_hooks(toy.module) == 0


@pytest.mark.parametrize("measure", list(MEASURES))
def test_every_measure_is_that_of_a_pass_alone(measure):
    compared(Sensing(measure), [], moments=False)


@pytest.mark.parametrize("calibrations", [[], ["minmax"], ["cosine"]])
def test_all_that_is_recorded_is_that_of_a_pass_alone(calibrations):
    compared(Sensing("mean", quantiles=True), calibrations, moments=True)


def test_nothing_need_be_sensed():
    compared(Sensing(), ["minmax"], moments=False)


def test_batches_of_one_shape_and_language_are_put_together():
    one, two, three = (talk(clips([40, 61], seed=i)) for i in range(3))
    other = replace(talk(clips([61], seed=5)), language="it")
    shared = list(shared_batches([[one], [two, one], [other], [three]]))
    assert [[client for client, _ in s.parts] for s in shared] == [[0, 1, 3], [2], [1]]
    first = shared[0]
    assert torch.equal(
        first.batch.inputs["x"], torch.cat([b.inputs["x"] for b in (one, two, three)])
    )
    assert first.batch.frames_in["mid"].tolist() == one.frames_in["mid"].tolist() * 3
    assert first.batch.frames_in["mid"] is first.batch.frames_in["head"]  # still one tensor
    tensor = torch.arange(6)
    assert [part.part(tensor).tolist() for _, part in first.parts] == [[0, 1], [2, 3], [4, 5]]
    assert first.parts[0][1].part(torch.ones(1, 6)).shape == (1, 6)  # the same for every clip


def test_a_stream_holds_one_batch_of_each_client():
    made = []

    def batches(client):
        for n in range(3):
            made.append((client, n))
            yield talk(clips([40], seed=n))

    stream = shared_batches([batches(0), batches(1)])
    next(stream)
    assert made == [(0, 0), (1, 0)]


def test_what_is_wrong_with_one_client_is_an_error():
    clients = of_clients()
    clients[1][0].inputs["x"][0, 0, 3] = torch.nan
    toy = Toy(Talker())
    with pytest.raises(FedsimError, match="outputs nan"):
        shared_pass(toy, clients, Sensing("median"))
    assert n_hooks(toy.module) == 0
