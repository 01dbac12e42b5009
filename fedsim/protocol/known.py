"""What an answer is compared with by its rules (`fedsim.protocol.rules`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """What the server knows of an exchange before it reads the answer."""

    layers: int
    """Number of layers of the model."""
    depths: tuple[int, ...]
    """Bit depths that the scenario allows."""
    clips: int
    """The most clips that a client tunes on, or is tested on: those that the answer is about."""
    plain: bool = True
    """Whether layer profiles travel as they are, rather than as a payload."""
    table: bool = False
    """Whether a layer profile is a table of losses, with a column per bit depth."""
    spoken: bool = False
    """Whether the language is needed."""
    sizes: tuple[int, ...] = ()
    """Exact bytes of each model that the answer is about, full precision first."""
    static: tuple[bool, ...] = ()
    """Whether the inputs of layers have static ranges, candidate by candidate."""
    recognizes: bool = True
    """Whether the model transcribes, rather than classifies."""
    loops: bool = False
    """Whether the model decodes token by token, and so may repeat itself."""
