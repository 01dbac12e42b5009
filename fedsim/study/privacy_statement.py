"""The privacy statement of a run: written into its folder, printed, and shown in its report."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from typing_extensions import TypedDict

from fedsim.base.files import write_text
from fedsim.base.jsonfile import read_json_as
from fedsim.errors import FedsimError
from fedsim.privacy.accounting import Guarantee, guarantee
from fedsim.privacy.bounds import Bounds
from fedsim.privacy.releases import RELEASES
from fedsim.scenario.privacy import PrivacySettings


@dataclass(frozen=True)
class PrivacyStatement:
    """What holds for each user; `guarantee` is None without differential privacy."""

    release: str
    sentence: str
    guarantee: Guarantee | None = None
    bounds: Bounds | None = None

    @property
    def plain(self) -> bool:
        """Whether layer profiles leave devices as they are."""
        return RELEASES[self.release].plain


def privacy_statement(
    privacy: PrivacySettings, layers: int, clients: int, bounds: Bounds | None
) -> PrivacyStatement:
    """Return the privacy statement of a run.

    Args:
        privacy: the section of the scenario.
        layers: number of layers of the model.
        clients: number of clients.
        bounds: public bounds of each value, where the release reads them.

    Raises:
        FedsimError: for a number outside its range.
    """
    if not privacy.chosen.adds_noise:
        sentence = privacy.chosen.statement.format(privacy=privacy)
        return PrivacyStatement(privacy.release, sentence, None, bounds)
    assert bounds is not None
    made = guarantee(
        privacy.mechanism,
        privacy.epsilon,
        privacy.delta,
        coordinates=layers if privacy.layers is None else len(privacy.layers),
        rounds=privacy.rounds,
        clients=clients,
        clipping=bounds.sentence(),
        noise=privacy.noise,
    )
    sentence = made.sentence()
    if privacy.budget is not None:
        sentence += (
            f" A device declines once its releases would cost more than ε ="
            f" {privacy.budget.epsilon:.4g} or δ = {privacy.budget.delta:.3g} in all."
        )
    return PrivacyStatement(privacy.release, sentence, made, bounds)


def write_statement(path: Path, statement: PrivacyStatement) -> None:
    """Write a statement as JSON."""
    fields = asdict(statement)
    if statement.bounds is not None:
        bounds = statement.bounds
        fields["bounds"] = {"low": bounds.low.tolist(), "high": bounds.high.tolist()}
    write_text(path, json.dumps(fields, indent=2) + "\n")


def read_statement(path: Path) -> PrivacyStatement | None:
    """Return the statement of a run folder's privacy.json, None if there is no such file.

    Raises `FedsimError` for a file that `write_statement` did not write.
    """
    if not path.is_file():
        return None
    remedy = "restore it, or run the scenario again"
    fields = read_json_as(_Statement, path, remedy)
    if fields["release"] not in RELEASES:
        raise FedsimError(
            f"{path}: the file is damaged, or of another version of fedsim (release"
            f" {fields['release']!r:.60}): {remedy}"
        )
    ends = fields.pop("bounds")
    try:
        bounds = Bounds(np.array(ends["low"]), np.array(ends["high"])) if ends else None
    except FedsimError as error:
        raise FedsimError(f"{path}: the file is damaged ({error}): {remedy}") from None
    return PrivacyStatement(bounds=bounds, **fields)


class _Ends(TypedDict):
    low: list[float]
    high: list[float]


class _Statement(TypedDict):
    release: str
    sentence: str
    guarantee: Guarantee | None
    bounds: _Ends | None
