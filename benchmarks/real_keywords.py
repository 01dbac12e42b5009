"""Does a keyword model recognize a real voice? Recordings of single words, from Debian.

    python -m benchmarks.real_keywords [MODEL]            (default bundled:keywords)

The ten digits and "no", spoken by the voice of Asterisk's prompts (asterisk-core-sounds-en-g722).
One speaker and eleven clips are an indication, not a measurement.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from pathlib import Path

from benchmarks.real_speech.fetch import fetch_debs, unpack_debs
from benchmarks.real_speech.prompts import DEBS, decode
from benchmarks.real_speech.texts import parse_texts
from fedsim.base.paths import cache_dir
from fedsim.speech.models import load_model
from fedsim.speech.models.base import SpeechModel, transcribe_clips
from fedsim.speech.voices.sentences import WORDS

_PACKAGE = "asterisk-core-sounds-en"


def real_keywords(model: SpeechModel) -> list[tuple[str, str]]:
    """Return (word spoken, word recognized) for each recording of one of the 35 words."""
    downloads = cache_dir() / "debs"
    downloads.mkdir(parents=True, exist_ok=True)
    debs = fetch_debs([d for d in DEBS if d.package.startswith(_PACKAGE)], downloads)
    with tempfile.TemporaryDirectory() as scratch:
        unpack_debs(debs, Path(scratch))
        share = Path(scratch) / "usr" / "share"
        listing = share / "doc" / _PACKAGE / "core-sounds-en.txt.gz"
        texts = parse_texts(gzip.decompress(listing.read_bytes()))
        folder = share / "asterisk" / "sounds" / "en_US_f_Allison"
        spoken = {folder / f"{n}.g722": t.lower() for n, t in texts.items() if t.lower() in WORDS}
        clips = {path: decode(path) for path in spoken if path.is_file()}
    found = transcribe_clips(model, list(clips.values()))
    return [(spoken[path], word) for path, word in zip(clips, found, strict=True)]


def main() -> None:
    """Print each word and what the model recognized."""
    pairs = real_keywords(load_model(sys.argv[1] if len(sys.argv) > 1 else "bundled:keywords"))
    for spoken, found in pairs:
        print(f"{spoken:8} {found:8} {'' if spoken == found else 'wrong'}")
    print(f"{sum(spoken == found for spoken, found in pairs)} of {len(pairs)} right")


if __name__ == "__main__":
    main()
