"""Synthetic speakers, as many as a study asks for.

`speaker(language, number)` is a person, a `Take` one repetition of a text by that person, and
`render` its clip: the same samples in every process, whatever was rendered before. On another kind
of processor a few samples may differ by one 16-bit step; speakers and texts never do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.errors import AudioError
from fedsim.speech.voices.acoustics import record
from fedsim.speech.voices.places import QUIET, Scene
from fedsim.speech.voices.speaker import Speaker
from fedsim.speech.voices.synthesizer import synthesize

__all__ = ["Take", "render"]


@dataclass(frozen=True)
class Take:
    """A clip to be rendered: the `number`-th repetition of `text` by the speaker."""

    speaker: Speaker
    text: str
    number: int = 0
    seconds: float = 0.0
    """Minimum length of the clip."""
    scene: Scene = QUIET
    """Where the speaker's device stands."""

    def render(self) -> np.ndarray:
        """Return the clip; see `render`."""
        return render(self)


def render(take: Take) -> np.ndarray:
    """Return the clip, float32 (samples,) at 16 kHz; takes of one text differ by their number.

    Raises `AudioError` if the synthesizer returns silence for the text.
    """
    who = take.speaker
    words = [int.from_bytes(t.encode(), "little") for t in (who.language, take.text)]
    rng = np.random.default_rng([*words, who.number, take.number])
    speech = synthesize(
        take.text,
        f"{who.accent}+{who.variant}",
        rate=round(who.rate * rng.uniform(0.92, 1.08) / who.tract),
        pitch=round(np.clip(who.pitch + rng.normal(0, 3), 0, 99)),
        pitch_range=who.pitch_range,
    )
    if not len(speech.samples) or int(np.abs(speech.samples).max()) < 1000:
        raise AudioError(f"{who.key} cannot say {take.text!r}: the synthesizer stays silent")
    return record(speech.samples, who, rng, take.seconds, take.scene)
