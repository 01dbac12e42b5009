"""What only the engine `flower` does; what it has in common with the others is tested with them."""

from __future__ import annotations

import logging

import pytest
from engine_asks import CLIENTS, ask_all, said

from fedsim.engine.flower_grid import GuardedApp
from fedsim.engine.flower_simulation import FlowerGrid, Workers
from fedsim.engine.ray_cluster import Room
from fedsim.errors import FedsimError


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"app": "no_such_module:app"}, "No module named 'no_such_module'"),
        ({"clients": ["a", "b", "a"]}, "'a' .* and 'a' .* have the same id"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(opened, settings, reason):
    level = logging.getLogger("flwr").level
    with pytest.raises(FedsimError, match=reason), opened("flower", workers=1, **settings):
        pass
    assert logging.getLogger("flwr").level == level


class Broken(Workers):
    def build(self, app_fn) -> None:
        raise ValueError("no room\n for workers")


def test_an_engine_that_breaks_down_says_so_instead_of_waiting():
    grid = FlowerGrid(CLIENTS, {})
    app = GuardedApp("engine_toys:app", threads=1)
    with (
        pytest.raises(FedsimError, match="has stopped: no room for workers; try --engine ray"),
        grid.served(app, Broken(Room(1, {}), threads=1)),
    ):
        pass
    grid.close()


@pytest.mark.slow
def test_a_client_that_kills_its_workers_fails_alone(opened):
    with opened("flower", workers=2) as grid:
        replies = ask_all(grid, "evaluate.poison", [int(i == 7) for i in range(20)])
        assert [reply.has_error() for reply in replies] == [i == 7 for i in range(20)]
        assert replies[7].error.code == 8
        assert "client 'user-07': its worker process died 3 times" in replies[7].error.reason
        assert [said(reply)["client"] for reply in ask_all(grid, "query.echo")] == CLIENTS
