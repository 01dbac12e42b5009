"""Synthetic speakers: speaker `number` of a language is the same person on every machine.

Everything about a speaker is drawn from its language and number, by `SeedSequence`. Numbers from
`FIRST_TRAINING_SPEAKER` on are reserved for training the bundled models: no scenario may use them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedsim.errors import FedsimError, nearest

GENDERS = ("female", "male")
FIRST_TRAINING_SPEAKER = 1_000_000
"""Speakers from this number on were used in training; those of scenarios are below it."""
FIRST_PUBLIC_SPEAKER = 900_000
"""Speakers from this number on are public: the bounds of releases are computed from them."""
FIRST_BROAD_SPEAKER = 950_000
"""Public speakers from this number on say the broad public set, and no bounds come from them."""

ACCENTS = {
    "ca": ("ca", "ca-ba", "ca-nw", "ca-va"),
    "de": ("de",),
    "en": (
        "en-us",
        "en-us-nyc",
        "en",
        "en-gb-x-rp",
        "en-gb-x-gbclan",
        "en-gb-x-gbcwmd",
        "en-gb-scotland",
        "en-029",
    ),
    "es": ("es", "es-419"),
    "fr": ("fr", "fr-be", "fr-ch"),
    "it": ("it",),
    "ja": ("ja",),
    "ko": ("ko",),
    "nl": ("nl",),
    "pl": ("pl",),
    "pt": ("pt", "pt-br"),
    "ru": ("ru",),
}
"""Language -> accents of the synthesizer; "en" is that of southern England."""

VARIANTS = {
    "female": ("f1", "f2", "f3", "f5", "Andrea", "anika", "aunty", "steph"),
    "male": ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "adam", "Denis", "Diogo", "john", "rob"),
}
"""Gender -> voice variants of the synthesizer that sound like people: those of its 104 that Whisper
base transcribes, without robots, whispers and children."""
UNHEARD_VARIANTS = frozenset({"f5", "Andrea", "m4", "Diogo", "rob"})
"""Variants that no training speaker has, so that some speakers of a scenario have a new voice."""
_PEOPLE, _PAIRS = 1, 2  # streams of random numbers
PLACE_STREAM, NOISE_STREAM = 3, 4
"""Streams of what surrounds a speaker, so that a place changes nothing else of anybody."""


@dataclass(frozen=True)
class Speaker:
    """One person, with room and microphone."""

    language: str
    number: int
    gender: str
    accent: str
    variant: str
    rate: int
    """Words per minute."""
    pitch: int
    """0..99 of the synthesizer; 50 is the default of the variant."""
    pitch_range: int
    """0..99 of the synthesizer; 50 is the default of the variant."""
    tract: float
    """Factor on formants and pitch: 0.9 is a long vocal tract, 1.1 a short one."""
    low_cut_hz: float
    high_cut_hz: float
    tilt_db: float
    """The microphone's slope, dB per octave about 1 kHz."""
    reverberation_s: float
    """Time in which the room's echo falls by 60 dB."""
    echo_db: float
    """Level of the echo against the direct sound."""
    snr_db: float
    noise_slope_db: float
    """Slope of the background noise, dB per octave: 0 is white, -6 a rumble."""
    level_db: float
    """Level of the speech, dB below full scale."""

    @property
    def key(self) -> str:
        """Language and number: "en-000017"."""
        return f"{self.language}-{self.number:06d}"


def own_rng(stream: int, language: str, number: int) -> np.random.Generator:
    """Return a speaker's generator for one purpose, always in the same state."""
    return np.random.default_rng([stream, int.from_bytes(language.encode(), "little"), number])


def gender_of(language: str, number: int) -> str:
    """Return the gender of speaker `number` of a language, without the rest of the person."""
    return GENDERS[(own_rng(_PAIRS, language, number // 2).integers(2) + number) % 2]


@lru_cache(maxsize=4096)
def speaker(language: str, number: int) -> Speaker:
    """Return speaker `number` of a language.

    Speakers 2 k and 2 k + 1 are a woman and a man, in random order: any range of even length that
    begins at an even number is balanced.

    Raises:
        FedsimError: for a language without voices, and for a negative number.
    """
    if language not in ACCENTS:
        raise FedsimError(f"no voice speaks {language!r}: {nearest(language, ACCENTS)}")
    if number < 0:
        raise FedsimError(
            f"speaker {number} of {language!r}: numbers begin at 0; give one from 0 on"
        )
    gender = gender_of(language, number)
    rng = own_rng(_PEOPLE, language, number)
    is_new = number < FIRST_TRAINING_SPEAKER
    variants = [v for v in VARIANTS[gender] if is_new or v not in UNHEARD_VARIANTS]
    return Speaker(
        language=language,
        number=number,
        gender=gender,
        accent=str(rng.choice(ACCENTS[language])),
        variant=str(rng.choice(variants)),
        rate=round(rng.uniform(130, 195)),
        pitch=round(rng.uniform(30, 70)),
        pitch_range=round(rng.uniform(25, 75)),
        tract=rng.uniform(0.9, 1.12),
        low_cut_hz=rng.uniform(40, 250),
        high_cut_hz=rng.uniform(4500, 7800),
        tilt_db=rng.uniform(-2, 2),
        reverberation_s=rng.uniform(0.08, 0.5),
        echo_db=rng.uniform(-30, -8),
        snr_db=float(np.clip(rng.normal(24, 6), 10, 40)),
        noise_slope_db=rng.uniform(-6, 0),
        level_db=rng.uniform(-35, -16),
    )
