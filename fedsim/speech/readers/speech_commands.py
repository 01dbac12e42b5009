"""Speech Commands v0.02 as its archive unpacks (arXiv:1804.03209).

`WORD/SPEAKER_nohash_NUMBER.wav`, and two lists of such names that divide the clips.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedsim.base.units import count_words
from fedsim.errors import FedsimError
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.readers.base import Recordings, Row, folders_in, require_folder, utterances_of
from fedsim.speech.tables import lines_of

LISTS = {"test": "testing_list.txt", "validation": "validation_list.txt"}
_SPLITS = {**{name: name for name in LISTS}, "dev": "validation", "train": "train"}
_NAME = re.compile(r"(.+)_nohash_(\d+)\.wav")
NOISE = "_background_noise_"
COLUMNS = ("file", "text", "label", "speaker", "speaker_id", "utterance_id")
"""The hub's names of columns are among them, so that one scenario serves both."""


def is_speech_commands(path: Path) -> bool:
    """Return whether a folder has both lists."""
    return all((path / name).is_file() for name in LISTS.values())


def read_speech_commands(corpus: CorpusSettings) -> Recordings:
    """Return the utterances of a split, by word and file name; those of no list are for training.

    Raises `FedsimError` for a split that there is not, a list that is missing or names a clip that
    is not there.
    """
    root = require_folder(corpus)
    if corpus.split not in _SPLITS:
        raise FedsimError(
            f"corpus.split is {corpus.split!r}, and Speech Commands has test, validation and train;"
            f" set one of them"
        )
    split = _SPLITS[corpus.split]
    listed = {
        name: {text.strip(): n for n, text in lines_of(root / f)} for name, f in LISTS.items()
    }
    clips, skipped = _clips(root)
    for name, file in LISTS.items():
        for clip, line in listed[name].items():
            if clip not in clips:
                raise FedsimError(
                    f"{root / file}:{line}: {clip!r} is not there; unpack the archive again"
                )
    if split == "train":
        chosen = {c: (root, 0) for c in clips if not any(c in names for names in listed.values())}
    else:
        chosen = {c: (root / LISTS[split], listed[split][c]) for c in clips if c in listed[split]}
    rows = (_row(root, clip, *place) for clip, place in chosen.items())
    utterances, notes = utterances_of(corpus, rows, COLUMNS, {}, str(root))
    if skipped:
        files = count_words(len(skipped), "WAV file")
        notes += (f"{files} not named SPEAKER_nohash_NUMBER left out, the first is {skipped[0]}",)
    return Recordings(utterances, tuple(root / name for name in LISTS.values()), notes)


def _clips(root: Path) -> tuple[dict[str, None], list[str]]:
    """Return all clips, as word/name in order, and the names of WAV that are none."""
    clips: dict[str, None] = {}
    skipped = []
    for word, folder in folders_in(root).items():
        if word == NOISE:
            continue
        for file in sorted(folder.glob("*.wav")):
            if file.name.startswith("."):  # a Macintosh leaves such beside files that it copies
                continue
            if _NAME.fullmatch(file.name):
                clips[f"{word}/{file.name}"] = None
            else:
                skipped.append(f"{word}/{file.name}")
    return clips, skipped


def _row(root: Path, clip: str, table: Path, line: int) -> Row:
    word, _, name = clip.partition("/")
    found = _NAME.fullmatch(name)
    assert found is not None
    values: dict[str, str | None] = {
        **{"file": clip, "text": word, "label": word},
        **{"speaker": found[1], "speaker_id": found[1], "utterance_id": found[2]},
    }
    return Row(f"{table}:{line}" if line else str(table), clip, root / clip, values)
