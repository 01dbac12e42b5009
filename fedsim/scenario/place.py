"""The setting `corpus.population.place`: where the devices of synthetic speakers stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from fedsim.registry import Lazy, Registry
from fedsim.scenario.settings import (
    AsWritten,
    OneOf,
    Settings,
    Text,
    as_tuple,
    ascending,
    one_or_more,
    problem,
    refuse_repeats,
)

QUIET = "quiet"
OPTIONAL_KEYS = ("snr_db", "noise")
"""Keys of a place that only some kinds use."""


@dataclass(frozen=True)
class PlaceKind:
    """One kind of place: what it draws for a speaker, and which settings it uses."""

    settle: Callable[..., Any]
    """f(`PlaceSettings`, rng) -> `fedsim.speech.voices.places.Scene`: what changes of the
    recordings of one speaker, whose own generator is `rng`."""
    summary: str
    takes: tuple[str, ...] = ()
    """Keys among `OPTIONAL_KEYS` that may be given."""


@dataclass(frozen=True)
class NoiseKind:
    """One kind of background noise, which is synthesized."""

    make: Callable[..., Any]
    """f(n, place, rng) -> samples, float (n,) at 16 kHz, of any level.

    `place` draws what stays the same in all clips of a speaker, such as the pitch of a fan, and is
    in the same state for each of them; `rng` draws what differs from clip to clip."""
    summary: str


PLACES: Registry[PlaceKind] = Registry("place")
PLACES.add(
    QUIET,
    PlaceKind(
        Lazy("fedsim.speech.voices.places:quiet"),
        summary="Each speaker's own room, microphone and faint noise.",
    ),
)
PLACES.add(
    "noisy",
    PlaceKind(
        Lazy("fedsim.speech.voices.places:noisy"),
        summary="The speaker's own room and microphone, with a noise of snr_db in the background.",
        takes=OPTIONAL_KEYS,
    ),
)
PLACES.add(
    "telephone",
    PlaceKind(
        Lazy("fedsim.speech.voices.places:telephone"),
        summary="A telephone line: 300 to 3400 Hz, mu-law of 8 bits.",
    ),
)
PLACES.add(
    "far",
    PlaceKind(
        Lazy("fedsim.speech.voices.places:far"),
        summary="Far from the device in a large room: about as much echo as direct sound.",
    ),
)

NOISES: Registry[NoiseKind] = Registry("background noise")
_OWN_NOISES = {
    "babble": "Several people who talk at once; no word can be understood.",
    "street": "Traffic, with vehicles that pass.",
    "car": "The inside of a moving car: a rumble and the engine.",
    "fan": "A steady rush, with the hum of the blades.",
    "music": "Chords, a melody and a beat.",
}
for _name, _summary in _OWN_NOISES.items():
    NOISES.add(_name, NoiseKind(Lazy(f"fedsim.speech.voices.noises:{_name}"), _summary))
DEFAULT_NOISES = tuple(_OWN_NOISES)
"""Those that come with fedsim: what is drawn must not depend on which plug-ins are installed."""
DEFAULT_SNR_DB = (0.0, 20.0)

_Level = Annotated[float, Field(ge=-20, le=60), AsWritten()]
_Levels = Annotated[
    Annotated[_Level, Tag("<number>")]
    | Annotated[
        tuple[_Level, _Level],
        BeforeValidator(as_tuple),
        AfterValidator(ascending),
        Tag("<range>"),
    ],
    Discriminator(lambda value: "<range>" if isinstance(value, list | tuple) else "<number>"),
]
_Noise = Annotated[Text, OneOf(NOISES)]


class PlaceSettings(Settings):
    """Where devices stand."""

    kind: Annotated[Text, OneOf(PLACES)] = Field(default=QUIET, description="what place it is")
    snr_db: _Levels | None = Field(
        default=None,
        description="noisy: level of the speech above that of the noise, in dB; of [low, high] each"
        f" speaker draws one; null is [{DEFAULT_SNR_DB[0]:g}, {DEFAULT_SNR_DB[1]:g}]",
    )
    noise: (
        Annotated[
            tuple[_Noise, ...],
            BeforeValidator(one_or_more, json_schema_input_type=_Noise | list[_Noise]),
            Field(min_length=1),
            AfterValidator(refuse_repeats),
        ]
        | None
    ) = Field(
        default=None,
        description="noisy: the noise; of several each speaker draws one; null is any of fedsim's"
        " own",
    )

    @model_validator(mode="after")
    def _check(self) -> PlaceSettings:
        for key in OPTIONAL_KEYS:
            if getattr(self, key) is not None and key not in PLACES[self.kind].takes:
                raise problem(f"the place {self.kind!r} takes no {key}: remove it", key)
        return self


def _from_word(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _shape(value: Any) -> str:
    return "<several>" if isinstance(value, list | tuple) else "<one>"


_Place = Annotated[
    PlaceSettings,
    BeforeValidator(
        _from_word, json_schema_input_type=PlaceSettings | Annotated[Text, OneOf(PLACES)]
    ),
]
Places = Annotated[
    Annotated[_Place, Tag("<one>")]
    | Annotated[
        tuple[_Place, ...],
        BeforeValidator(as_tuple),
        Field(min_length=1),
        Tag("<several>"),
    ],
    Discriminator(_shape),
]
"""A place, or several among which speakers are divided; a word stands for a kind alone."""
