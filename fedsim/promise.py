"""What a run promises about what leaves a device: written into its folder, printed, reported."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError
from fedsim.privacy.accounting import UNIT, Guarantee, guarantee
from fedsim.privacy.bounds import Bounds
from fedsim.scenario.privacy import COHORT, PrivacySettings

_NO_NOISE = "there is no noise, so no differential privacy is promised"


@dataclass(frozen=True)
class Promise:
    """What holds for each user; `guarantee` is None where nothing is promised in numbers."""

    release: str
    sentence: str
    guarantee: Guarantee | None = None
    bounds: Bounds | None = None


def promise(said: PrivacySettings, layers: int, clients: int, bounds: Bounds | None) -> Promise:
    """Return what a run promises to each of its clients.

    Args:
        said: a scenario's `privacy`.
        layers: of the model.
        clients: how many there are.
        bounds: public bounds of each layer, where the release reads them.

    Raises:
        FedsimError: for a number outside its range.
    """
    if said.release != "noisy":
        return Promise(said.release, _plainly(said), None, bounds)
    assert bounds is not None
    made = guarantee(
        said.mechanism,
        said.epsilon,
        said.delta,
        coordinates=layers if said.layers is None else len(said.layers),
        rounds=said.rounds,
        clients=clients,
        clipping=bounds.sentence(),
        noise=said.noise,
    )
    sentence = made.sentence()
    if said.budget is not None:
        sentence += (
            f" A device whose releases would cost more than ε = {said.budget.epsilon:.4g} or δ ="
            f" {said.budget.delta:.3g} in all declines."
        )
    return Promise("noisy", sentence, made, bounds)


def write_promise(path: Path, made: Promise) -> None:
    """Write a promise as JSON."""
    said = asdict(made)
    if made.bounds is not None:
        said["bounds"] = {"low": made.bounds.low.tolist(), "high": made.bounds.high.tolist()}
    path.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def read_promise(path: Path) -> Promise | None:
    """Return the promise of a run folder's privacy.json, None if there is no such file.

    Raises `FedsimError` for a file that `write_promise` did not write.
    """
    import numpy as np

    if not path.is_file():
        return None
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if said["guarantee"] is not None:
            said["guarantee"] = Guarantee(**said["guarantee"])
        if said["bounds"] is not None:
            said["bounds"] = Bounds(
                *(np.asarray(said["bounds"][k], float) for k in ("low", "high"))
            )
        return Promise(**said)
    except (ValueError, KeyError, TypeError) as error:
        raise FedsimError(
            f"{path}: this is no privacy.json of this version of fedsim: run it again"
        ) from error


def _plainly(said: PrivacySettings) -> str:
    match said.release:
        case "values":
            return f"Each device sends one number a layer as it is: {_NO_NOISE}."
        case "quantized":
            return f"Each device sends {said.bits} bits a layer: {_NO_NOISE}."
        case "ranks":
            return f"Each device sends the order of its layers and no value: {_NO_NOISE}."
        case "plan":
            return (
                f"Each device plans for itself and sends the bit depth of each layer alone:"
                f" {_NO_NOISE}."
            )
        case "none":
            return (
                "Nothing of a user's audio leaves the device before its test results: the"
                " plan is made from public voices, at ε = 0."
            )
        case _ if said.release == COHORT:
            return (
                f"The server learns the mean of groups in which {said.cohort.least} devices or more"
                f" stay to the end, by secure aggregation, and no device's own values: {_NO_NOISE}."
            )
    return f"Each device sends what release {said.release!r} lets out of {UNIT}."
