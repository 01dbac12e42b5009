"""A population of speakers who do not exist: synthetic voices, as many as a study asks for.

`speaker(language, number)` is who, `Take` is what was said and which time, and `render` is the
clip: the same samples in any process, whatever was rendered before. Another kind of processor may
round a few samples to the next of the 16-bit steps; who speaks and what is said never differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.errors import AudioError
from fedsim.speech.voices.acoustics import record
from fedsim.speech.voices.speaker import Speaker
from fedsim.speech.voices.synthesizer import synthesize

__all__ = ["Take", "render"]


@dataclass(frozen=True)
class Take:
    """One clip to be: the speaker says `text` for the `number`-th time."""

    speaker: Speaker
    text: str
    number: int = 0
    seconds: float = 0.0
    """The clip is at least this long."""

    def render(self) -> np.ndarray:
        """Return the clip; see `render`."""
        return render(self)


def render(take: Take) -> np.ndarray:
    """Return the clip, float32 (samples,) at 16 kHz; no two takes of one text are the same.

    Raises `AudioError` for a text that the voice cannot say.
    """
    who = take.speaker
    words = [int.from_bytes(t.encode(), "little") for t in (who.language, take.text)]
    rng = np.random.default_rng([*words, who.number, take.number])
    said = synthesize(
        take.text,
        f"{who.accent}+{who.variant}",
        rate=round(who.rate * rng.uniform(0.92, 1.08) / who.tract),
        pitch=round(np.clip(who.pitch + rng.normal(0, 3), 0, 99)),
        pitch_range=who.pitch_range,
    )
    if not len(said.samples) or int(np.abs(said.samples).max()) < 1000:
        raise AudioError(f"{who.key} cannot say {take.text!r}: the synthesizer stays silent")
    return record(said.samples, who, rng, take.seconds)
