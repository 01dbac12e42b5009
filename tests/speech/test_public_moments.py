"""Public second moments of a model that transcribes the clips first: of its own passes alone."""

from __future__ import annotations

import numpy as np
import toys

from fedsim.quant.moments import second_moments
from fedsim.speech.models.base import own_tokens, tuning_batches
from fedsim.speech.public_model import PublicModel
from fedsim.speech.public_set import PublicClip, public_set_of

SPOKEN = {"en": toys.clips([0.4, 0.5]), "it": toys.clips([0.45, 0.35], seed=1)}


def test_the_passes_that_transcribe_are_not_recorded(speech):
    model = speech("whisper")
    clips = public_set_of(PublicClip(c, language) for language in SPOKEN for c in SPOKEN[language])
    found = PublicModel(model, lambda: clips, 1).moments
    batches = [
        batch
        for language in SPOKEN
        for batch in tuning_batches(
            model,
            spoken_of(clips, language),
            own_tokens(model, spoken_of(clips, language), language),
            language,
        )
    ]
    expected = second_moments(model, batches)
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert found[name].rows == one.rows
        np.testing.assert_array_equal(found[name].mean, one.mean)


def spoken_of(clips, language):
    return [c.clip for c in clips.clips if c.language == language]
