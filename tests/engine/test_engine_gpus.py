"""Workers on GPUs, as Ray places them: it takes the number that it is given, GPUs or not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_asks import ask_all, said

from fedsim.engine import EngineSettings, open_grid
from fedsim.errors import FedsimError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    """A Ray with four cores and two GPUs, which the engine uses and leaves running."""
    with open_grid("inprocess", "engine_toys:app", ["a"], {}, EngineSettings()):
        pass  # any engine sets what Ray reads when it is imported
    import ray

    ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def visible(opened, **settings) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each worker."""
    with opened("ray", device="cuda", **settings) as grid:
        answers = [said(reply) for reply in ask_all(grid, "query.gpu", [0.2] * 20)]
        return sorted({answer["pid"]: answer["visible"] for answer in answers}.values())


@pytest.fixture
def opened(two_gpus):
    """Open an engine on the toy clients, over the Ray of this module."""

    def open_(engine: str, **settings):
        clients = [f"user-{i:02d}" for i in range(20)]
        config = {"word": "hello", "folder": ""}
        return open_grid(engine, "engine_toys:app", clients, config, EngineSettings(**settings))

    return open_


def test_each_worker_has_a_gpu_of_its_own(opened):
    """Not as many as there are cores."""
    assert visible(opened) == ["0", "1"]


def test_more_workers_than_the_gpus_have_room_for(opened):
    reason = "4 free cores and 2 free GPUs, too few for 3 workers of 1 threads and 1/1 GPU"
    with (
        pytest.raises(FedsimError, match=reason),
        opened("ray", device="cuda", workers=3, wait_seconds=3.0),
    ):
        pass


def test_workers_on_the_processor_ask_for_no_gpu(opened):
    """They take every core."""
    with opened("ray") as grid:
        answers = [said(reply) for reply in ask_all(grid, "query.gpu", [0.2] * 20)]
        assert len({answer["pid"] for answer in answers}) == 4


def test_a_worker_whose_gpu_is_lost_is_a_dead_one(opened):
    """The client is tried again on others, and the run goes on."""
    with opened("ray", workers=2) as grid:
        replies = ask_all(grid, "query.lose", [int(i == 7) for i in range(20)])
        failed = [reply for reply in replies if reply.has_error()]
        assert len(failed) == 1
        assert "client 'user-07': its worker process died 3 times" in failed[0].error.reason
