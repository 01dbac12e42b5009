"""The section `model.vocabulary`: which tokens the model file of a client keeps."""

from __future__ import annotations

from pydantic import Field

from fedsim.scenario.settings import Settings, Text

LANGUAGE = "{language}"
"""What stands for a client's language in the name of a file."""


class VocabularySettings(Settings):
    """The part of a token embedding that model files hold, by client language."""

    words: int = Field(
        ge=1,
        le=1_000_000,
        description="keep the tokens of this many of the most frequent words of the language",
    )
    own: int = Field(
        default=256,
        ge=0,
        le=100_000,
        description="further rows, for tokens of the model's own transcripts of a client's clips;"
        " they stay on the device, and change no size",
    )
    words_from: Text | None = Field(
        default=None,
        description="public text whose words are counted, {language} in its name stands for the"
        " client's language; null is the package wordfreq",
    )
