"""Telephone prompts in five languages as an AudioFolder: 16 kHz recordings and their texts."""

from __future__ import annotations

import csv
import gzip
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from fedsim.errors import FedsimError

from .fetch import Deb, fetch_debs, unpack_debs
from .otherwise import SAYS_OTHERWISE
from .texts import parse_texts, plain_text

RECIPE = 1
RATE = 16000  # samples per second
MAX_SECONDS = 30.0  # one window of Whisper

# Letters per second, relative to the speaker's median, at which a text can match its recording.
SLOWEST, FASTEST = 0.4, 1.75

# SHA-256 of the texts and of the recordings, by language.
_CORE_SOUNDS = {
    "en": (
        "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
        "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
    ),
    "es": (
        "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74",
        "e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8",
    ),
    "fr": (
        "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056",
        "7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0",
    ),
    "it": (
        "3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b",
        "46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016",
    ),
    "ru": (
        "28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab",
        "673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b",
    ),
}

_MENARDI = Deb(
    "asterisk-prompt-it-menardi-wav",
    "1:1.4.22+mm20110907-3.1",
    "3094530d98f8758ac275572d59624c41f60969fef883f34f4886d144f3dfeb21",
)

DEBS = (
    *(
        Deb(f"asterisk-core-sounds-{language}{kind}", "1.6.1-1", digest)
        for language, digests in _CORE_SOUNDS.items()
        for kind, digest in zip(("", "-g722"), digests, strict=True)
    ),
    _MENARDI,
)


def make_prompts(folder: Path, downloads: Path) -> None:
    """Fill `folder` with `<language>/<speaker>/<name>.flac`, `metadata.csv` and the licences."""
    # Everything needed later is imported before anything is downloaded.
    soundfile, _, _ = (_needed(module) for module in ("soundfile", "soxr", "av"))
    debs = fetch_debs(DEBS, downloads)
    rows = []
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        unpack_debs(debs, Path(scratch))
        share = Path(scratch) / "usr" / "share"
        for voice in VOICES:
            prompts = _prompts(voice, share)
            print(f"  {voice.language} {voice.speaker}: {len(prompts)} prompts", flush=True)
            for prompt in prompts:
                path = folder / voice.language / voice.speaker / prompt.file_name
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, prompt.samples, RATE, subtype="PCM_16")
                name = path.relative_to(folder).as_posix()
                rows.append([name, voice.speaker, voice.gender, voice.language, prompt.text])
        for package in ("asterisk-core-sounds-en", _MENARDI.package):
            shutil.copy(share / "doc" / package / "copyright", folder / f"LICENSE.{package}")
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file_name", "speaker", "gender", "language", "text"])
        writer.writerows(sorted(rows))
    (folder / "README").write_text(_README, encoding="utf-8")


def plausible(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts of one speaker whose texts can be spoken in the time of their recordings.

    Those longer than Whisper's window are left out too.
    """
    pace = [sum(map(str.isalnum, prompt.text)) / prompt.seconds for prompt in prompts]
    usual = statistics.median(pace)
    return [
        prompt
        for prompt, letters in zip(prompts, pace, strict=True)
        if SLOWEST <= letters / usual <= FASTEST and prompt.seconds <= MAX_SECONDS
    ]


def tally(folder: Path) -> list[tuple[str, str, str, int, float]]:
    """Return language, speaker, gender, prompts and minutes of every voice in a folder."""
    soundfile = _needed("soundfile")
    seconds: dict[tuple[str, str, str], list[float]] = {}
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            voice = row["language"], row["speaker"], row["gender"]
            duration = soundfile.info(folder / row["file_name"]).duration
            seconds.setdefault(voice, []).append(duration)
    return [(*voice, len(each), sum(each) / 60) for voice, each in sorted(seconds.items())]


def _prompts(voice: Voice, share: Path) -> list[Prompt]:
    """Return all prompts of a voice that have a plain text and a recording that matches it."""
    package = f"asterisk-core-sounds-{voice.language}"
    listing = share / "doc" / package / f"core-sounds-{voice.language}.txt.gz"
    prompts = []
    otherwise = SAYS_OTHERWISE.get(voice.speaker, "").split()
    for name, listed in parse_texts(gzip.decompress(listing.read_bytes())).items():
        path = share / "asterisk" / "sounds" / voice.folder / f"{name}.{voice.suffix}"
        text = plain_text(name, listed)
        if text is not None and path.is_file() and name not in otherwise:
            prompts.append(Prompt(name, text, decode(path)))
    return plausible(prompts)


def decode(path: Path) -> np.ndarray:
    """Return a recording as float32 samples (n,) at 16 kHz, in -1..1."""
    if path.suffix == ".g722":
        # Raw G.722 has no header. It is always one channel at 16 kHz.
        with _needed("av").open(str(path), format="g722") as container:
            frames = [frame.to_ndarray().ravel() for frame in container.decode(audio=0)]
        return np.concatenate(frames).astype(np.float32) / 32768
    samples, rate = _needed("soundfile").read(path, dtype="float32")
    return samples if rate == RATE else _needed("soxr").resample(samples, rate, RATE)


def _needed(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError:
        raise FedsimError(
            f"the Python package {module} is missing; pip install 'fedsim-speech[real-speech]'"
        ) from None


@dataclass(frozen=True)
class Voice:
    """One speaker: where the recordings are in the packages, and what is known about them."""

    language: str
    speaker: str
    gender: str
    folder: str
    suffix: str = "g722"


@dataclass(frozen=True)
class Prompt:
    """One recording, float32 samples (n,) at 16 kHz, and its text."""

    name: str
    text: str
    samples: np.ndarray

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return len(self.samples) / RATE

    @property
    def file_name(self) -> str:
        """Name of its file; the packages have some prompts in subfolders."""
        return self.name.replace("/", "-") + ".flac"


VOICES = (
    Voice("en", "allison-en", "female", "en_US_f_Allison"),
    Voice("es", "allison-es", "female", "es_MX_f_Allison"),
    Voice("fr", "june", "female", "fr_CA_f_June"),
    Voice("it", "carlo", "male", "it_IT_m_Carlo"),
    Voice("it", "menardi", "female", "it_IT_f_Menardi", "wav"),
    Voice("ru", "ivrvoice", "female", "ru_RU_f_IvrvoiceRU"),
)

_README = """Telephone prompts in five languages, made by `python -m benchmarks.real_speech`.

metadata.csv names every recording with its speaker, gender, language and text; `datasets` reads the
folder as an AudioFolder (its release 5 wants torchcodec for that). All recordings are 16 kHz, one
channel, 16 bits, FLAC.

language  speaker     voice                     Debian package                        licence
en        allison-en  Allison Smith             asterisk-core-sounds-en(-g722) 1.6.1  CC-BY-SA 3.0
es        allison-es  Allison Smith             asterisk-core-sounds-es(-g722) 1.6.1  CC-BY-SA 3.0
fr        june        June Wallack              asterisk-core-sounds-fr(-g722) 1.6.1  CC-BY-SA 3.0
it        carlo       Carlo Flora               asterisk-core-sounds-it(-g722) 1.6.1  CC-BY 3.0
it        menardi     of Marco Menardi and      asterisk-prompt-it-menardi-wav        CC-BY-SA 3.0
                      Paola Dal Zot             1.4.22+mm20110907                     Italy
ru        ivrvoice    provided by Maxim Topal   asterisk-core-sounds-ru(-g722) 1.6.1  CC-BY 3.0

The voice files of menardi were made by Marco Menardi and his wife Paola Dal Zot; updates and
recordings to order: www.voip.ammdomus.it. The authors, their sites and the licences in full are in
LICENSE.asterisk-core-sounds-en (one file for all five languages) and
LICENSE.asterisk-prompt-it-menardi-wav, both as the packages carry them. What is here may be passed
on under the same licences.

What was changed: the G.722 files were decoded, and nothing else was done to their sound. The files
of menardi are 8 kHz in the package and were resampled to 16 kHz, so they hold nothing above 4 kHz.
Kept are prompts of three or more words and at most 30 seconds, whose text is plain (no stage
directions, signs, alternatives or lost letters), fits the length of the recording and is what is
said, as far as comparing it with what Whisper base heard could tell. The texts are the packages'
own, typing mistakes and all: Spanish lacks most of its accents, and numbers are written now as
digits, now as words. The package of menardi has no texts: hers are those listed for carlo.
"""
