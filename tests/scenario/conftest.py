from __future__ import annotations

from collections.abc import Callable

import pytest

from fedsim.errors import FedsimError
from fedsim.scenario import Scenario, load_scenario


@pytest.fixture
def load(tmp_path) -> Callable[..., Scenario]:
    """Return a function that writes a text (or bytes) to s.yaml and loads it with overrides."""

    def write_and_load(text, *overrides):
        path = tmp_path / "s.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_scenario(path, overrides)

    return write_and_load


@pytest.fixture
def refuse(load, tmp_path) -> Callable[..., list[str]]:
    """Return a function that gives the lines of the error, without the file's folder."""

    def lines(text, *overrides):
        with pytest.raises(FedsimError) as caught:
            load(text, *overrides)
        return str(caught.value).replace(f"{tmp_path}/", "").splitlines()

    return lines
