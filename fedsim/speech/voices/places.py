"""What a place makes of the recordings of one speaker: see `fedsim.scenario.place.PLACES`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedsim.scenario.place import DEFAULT_NOISES, DEFAULT_SNR_DB, PLACES, PlaceSettings
from fedsim.speech.voices.speaker import PLACE_STREAM, Speaker, own_rng

_FAR_REVERBERATION_S = (0.4, 0.7)
_FAR_ECHO_DB = (-4.0, 1.0)  # those of speakers' own rooms end at -8


@dataclass(frozen=True)
class Scene:
    """What is different from the speaker's own quiet place; None leaves that as it is."""

    noise: str | None = None
    """Name of a background noise, in place of the speaker's own."""
    snr_db: float | None = None
    reverberation_s: float | None = None
    echo_db: float | None = None
    telephone: bool = False

    def heard(self, who: Speaker) -> Speaker:
        """Return the speaker with the acoustics of this place."""
        names = ("snr_db", "reverberation_s", "echo_db")
        changed = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(who, **changed) if changed else who


QUIET = Scene()


def scene_of(place: PlaceSettings, who: Speaker) -> Scene:
    """Return what a place is for a speaker, drawn from language and number alone.

    Raises `FedsimError` if no plug-in has the kind of place.
    """
    scene = PLACES[place.kind].settle(place, own_rng(PLACE_STREAM, who.language, who.number))
    assert isinstance(scene, Scene)
    return scene


def quiet(place: PlaceSettings, rng: np.random.Generator) -> Scene:
    """Return the speaker's own place."""
    return QUIET


def noisy(place: PlaceSettings, rng: np.random.Generator) -> Scene:
    """Return a place with one of the noises, and a level within the range, all equally likely."""
    noises = place.noise or DEFAULT_NOISES
    snr = DEFAULT_SNR_DB if place.snr_db is None else place.snr_db
    low, high = snr if isinstance(snr, tuple) else (snr, snr)
    # Both are drawn in any case, so that a level stays where other noises are named.
    noise, share = noises[int(rng.random() * len(noises))], rng.random()
    return Scene(noise=noise, snr_db=float(low + share * (high - low)))


def telephone(place: PlaceSettings, rng: np.random.Generator) -> Scene:
    """Return the speaker's own place, heard through a telephone."""
    return Scene(telephone=True)


def far(place: PlaceSettings, rng: np.random.Generator) -> Scene:
    """Return a large room, in which the echo is about as loud as the direct sound."""
    return Scene(
        reverberation_s=rng.uniform(*_FAR_REVERBERATION_S), echo_db=rng.uniform(*_FAR_ECHO_DB)
    )
