"""A few short clips in exactly the layout of each corpus as it is downloaded: names, tables and
oddities of the real ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import soundfile
import toys

LIBRISPEECH = {
    "61": ("70968", "M"),
    "121": ("121726", "F"),
    "1089": ("134686", "M"),
    "237": ("126133", "F"),
}
"""Speaker -> a chapter and the sex, of test-clean."""
COMMANDS = ("yes", "no", "marvin")
HASHES = ("0a2b400e", "c50f55b8", "ffa76c4a")


def sound(file: Path, seed: int, seconds: float = 0.3, rate: int = 16_000) -> np.ndarray:
    """Write a clip in the format that the name ends with, and return it."""
    samples = toys.clip(seconds * rate / 16_000, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".opus":
        soundfile.write(file, samples, rate, format="OGG", subtype="OPUS")
    else:
        soundfile.write(file, samples, rate)
    return samples


def lines(file: Path, *texts: str, end: str = "\n") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(text + end for text in texts).encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def librispeech(root: Path, each: int = 3) -> Path:
    """`LibriSpeech/`: test-clean and a dev-other of one speaker, with the files at the top."""
    root = root / "LibriSpeech"
    for part, speakers in (("test-clean", LIBRISPEECH), ("dev-other", {"116": ("288045", "M")})):
        for speaker, (chapter, _) in speakers.items():
            folder = root / part / speaker / chapter
            texts = []
            for i in range(each):
                key = f"{speaker}-{chapter}-{i:04d}"
                sound(folder / f"{key}.flac", int(speaker) + i, 0.3 + 0.02 * i)
                texts.append(f"{key} IT WAS THE {toys.WORDS[i % 10].upper()}TH O'CLOCK")
            lines(folder / f"{speaker}-{chapter}.trans.txt", *texts)
    lines(
        root / "SPEAKERS.TXT",
        "; Some pertinent information about the speakers",
        ";ID  |SEX| SUBSET           |MINUTES| NAME",
        *(
            f"{s:<4} | {sex} | test-clean       | 8.05  | A | B"
            for s, (_, sex) in LIBRISPEECH.items()
        ),
        "116  | M | dev-other        | 8.06  | |CBW|Simon",
    )
    lines(
        root / "CHAPTERS.TXT",
        ";ID |READER|MINUTES| SUBSET | PROJ.|BOOK ID| CH. TITLE | PROJECT TITLE",
    )
    lines(root / "README.TXT", "1. Data")
    return root


def speech_commands(root: Path) -> Path:
    """`speech_commands_v0.02/`: three words of three speakers; noise; files of a Macintosh."""
    root = root / "speech_commands_v0.02"
    named = []
    for w, word in enumerate(COMMANDS):
        for s, speaker in enumerate(HASHES):
            for i in range(2):
                name = f"{word}/{speaker}_nohash_{i}.wav"
                sound(root / name, 100 * w + 10 * s + i, 1.0)
                named.append(name)
        (root / word / f"._{HASHES[0]}_nohash_0.wav").write_bytes(b"\x00\x05\x16\x07")
    sound(root / "_background_noise_/doing_the_dishes.wav", 7, 3.0)
    lines(root / "_background_noise_/README.md", "Background noise samples")
    lines(root / "testing_list.txt", *(n for n in named if HASHES[0] in n))
    lines(root / "validation_list.txt", *(n for n in named if HASHES[1] in n))
    lines(root / "LICENSE", "Creative Commons Attribution 4.0")
    return root


CV_HEADER = (
    *("client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes"),
    *("age", "gender", "accents", "variant", "locale", "segment"),
)
CV_GENDERS = ("male_masculine", "female_feminine", "", "male")


def common_voice(root: Path, language: str = "en", speakers: int = 4, each: int = 3) -> Path:
    """`cv-corpus-21.0/LANGUAGE/`: MP3 at 32 kHz, texts with quotation marks that nobody closes."""
    root = root / "cv-corpus-21.0-2025-03-14"
    folder = root / language
    rows, lengths = [], []
    for s in range(speakers):
        for i in range(each):
            name = f"common_voice_{language}_{17_000_000 + 100 * s + i}.mp3"
            sound(folder / "clips" / name, 10 * s + i, 0.5, 32_000)
            text = ('"Hello', 'He said "two" of them.', "three, four\u2028five")[i % 3]
            who = f"{s:0>2x}" * 64
            accents = "United States English,Midwestern" if s == 1 else ""
            gender = CV_GENDERS[s % 4]
            cells = (
                who,
                name,
                "ab12",
                text,
                "",
                "2",
                "0",
                "twenties",
                gender,
                accents,
                "",
                language,
            )
            rows.append("\t".join((*cells, "")))
            lengths.append(f"{name}\t500")
    lines(folder / "test.tsv", "\t".join(CV_HEADER), *rows)
    lines(folder / "validated.tsv", "\t".join(CV_HEADER), *rows[:2])
    lines(folder / "clip_durations.tsv", "clip\tduration[ms]", *lengths)
    lines(folder / "reported.tsv", "sentence_id\tsentence\tlocale\treason", "a\tb\ten\toffensive")
    return root


def fleurs(root: Path, languages: tuple[str, ...] = ("nb_no", "cmn_hans_cn", "es_419")) -> Path:
    """`FLEURS102/LANGUAGE/`: a TSV without a header; a quotation mark that nobody closes."""
    root = root / "FLEURS102"
    for n, language in enumerate(languages):
        rows = []
        for i in range(4):
            name = f"1{n}{i}45678901234567890.wav"
            sound(root / language / "test" / name, 10 * n + i, 0.4)
            raw = f'"{language} {i}.' if i == 1 else f"{language}, {i}."
            sex = ("MALE", "FEMALE", "OTHER")[i % 3]
            cells = (str(1600 + i), name, raw, f"{language} {i}", "a | b |", "6400", sex)
            rows.append("\t".join(cells))
        lines(root / language / "test.tsv", *rows)
    return root


def mls(root: Path) -> Path:
    """`mls_polish_opus/`: two speakers, one book each."""
    root = root / "mls_polish_opus"
    texts = []
    for s, (speaker, book) in enumerate((("6892", "10350"), ("8758", "8338"))):
        for i in range(3):
            key = f"{speaker}_{book}_{i:06d}"
            sound(root / "test/audio" / speaker / book / f"{key}.opus", 10 * s + i, 0.5, 16_000)
            texts.append(f"{key}\tjak się masz {i}")
    lines(root / "test/transcripts.txt", *texts)
    lines(root / "test/segments.txt", *(f"{t.split()[0]}\thttp://a/b.mp3\t1.0\t9.0" for t in texts))
    lines(
        root / "metainfo.txt",
        " SPEAKER   |   GENDER   | PARTITION  |  MINUTES   |  BOOK ID   | TITLE | CHAPTER",
        "  6892     |   M   |   test   |  30.1  |  10350  | Pan Tadeusz | 01",
        "  8758     |   F   |   test   |  22.0  |  8338  | Lalka | Tom 1",
    )
    return root


def voxpopuli(root: Path) -> Path:
    """`transcribed_data/LANGUAGE/`: OGG by year; a speaker whom nobody knows."""
    folder = root / "transcribed_data/hr"
    header = "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender"
    rows = []
    for i, (speaker, gender) in enumerate(
        (("124720", "male"), ("None", "None"), ("96713", "female"))
    ):
        key = f"20{17 + i}0222-0900-PLENARY-{i}-hr_20170222-12:00:01_{i}"
        sound(folder / key[:4] / f"{key}.ogg", i, 0.4)
        rows.append(f'{key}\t"Dobar dan {i}.\tdobar dan {i}\t{speaker}\ttest\t{gender}')
    lines(folder / "asr_test.tsv", header, *rows)
    lines(folder / "asr_train.tsv", header)
    return root / "transcribed_data"


def kaldi(root: Path) -> tuple[Path, np.ndarray]:
    """`data/test/`: two recordings cut into four segments; names relative to the recipe."""
    long = sound(root / "downloads/rec1.wav", 1, 2.0)
    sound(root / "downloads/rec2.flac", 2, 1.0)
    folder = root / "data/test"
    lines(folder / "wav.scp", "rec1 downloads/rec1.wav", f"rec2 {root}/downloads/rec2.flac")
    lines(
        folder / "segments",
        *(
            "ann-1 rec1 0.00 0.50",
            "ann-2 rec1 0.50 1.25",
            "bob-1 rec1 1.25 -1",
            "bob-2 rec2 0.1 0.9",
        ),
    )
    lines(folder / "text", "ann-1 ONE", "ann-2 TWO  THREE", "bob-1 FOUR", "bob-2", "cyd-1 FIVE")
    lines(folder / "utt2spk", "ann-1 ann", "ann-2 ann", "bob-1 bob", "bob-2 bob")
    lines(folder / "spk2utt", "ann ann-1 ann-2", "bob bob-1 bob-2")
    lines(folder / "spk2gender", "ann f", "bob m")
    lines(folder / "utt2lang", "ann-1 en", "ann-2 en", "bob-1 eng", "bob-2 en-US")
    return root / "data", long


def nemo(root: Path) -> tuple[Path, np.ndarray]:
    """`manifests/`: two segments of one file and a whole one, names relative to the manifest."""
    long = sound(root / "manifests/wavs/a.wav", 1, 2.0)
    sound(root / "manifests/wavs/b.wav", 2, 0.5)
    rows = [
        {
            "audio_filepath": "wavs/a.wav",
            "offset": 0.5,
            "duration": 0.5,
            "text": '"eins',
            "lang": "de",
        },
        {
            "audio_filepath": "wavs/a.wav",
            "offset": 1.0,
            "duration": 1.0,
            "text": "zwei",
            "lang": "de-DE",
        },
        {
            "audio_filepath": "wavs/b.wav",
            "duration": 0.5,
            "text": "drei",
            "speaker": 7,
            "lang": None,
        },
    ]
    lines(root / "manifests/test_manifest.json", *map(json.dumps, rows))
    lines(root / "manifests/train_manifest.json", json.dumps(rows[2]))
    return root / "manifests", long


def lhotse(root: Path, *, cuts: bool = False) -> tuple[Path, np.ndarray]:
    """`manifests/`: one recording with two supervisions, and one of another split."""
    long = sound(root / "corpus/rec1.flac", 1, 2.0)
    sound(root / "corpus/rec2.flac", 2, 0.5)

    def recording(name: str, seconds: float) -> dict:
        source = {"type": "file", "channels": [0], "source": f"corpus/{name}.flac"}
        samples = round(seconds * 16_000)
        numbers = {"sampling_rate": 16_000, "num_samples": samples, "duration": seconds}
        return {"id": name, "sources": [source], **numbers, "channel_ids": [0]}

    def supervision(key: str, start: float, seconds: float, **more: object) -> dict:
        base = {
            "id": key,
            "recording_id": key[:4],
            "start": start,
            "duration": seconds,
            "channel": 0,
        }
        return {**base, "text": f"{key} said", "language": "English", "speaker": "ann", **more}

    of_one = [
        supervision("rec1-a", 0.25, 0.5, gender="Female", custom={"dialect": "north"}),
        supervision("rec1-b", 1.0, 1.0, speaker="bob", gender="M"),
    ]
    folder = root / "manifests"
    if cuts:
        cut = {"id": "cut1", "start": 0.2, "duration": 1.8, "channel": 0, "type": "MonoCut"}
        relative = [{**s, "start": s["start"] - 0.2} for s in of_one]
        whole = {**cut, "supervisions": relative, "recording": recording("rec1", 2.0)}
        lines(folder / "toy_cuts_test.jsonl.gz", json.dumps(whole))
        return folder, long
    for split, key, seconds, said in (
        ("test", "rec1", 2.0, of_one),
        ("train", "rec2", 0.5, [supervision("rec2-a", 0, 0.5)]),
    ):
        lines(folder / f"toy_recordings_{split}.jsonl.gz", json.dumps(recording(key, seconds)))
        lines(folder / f"toy_supervisions_{split}.jsonl.gz", *map(json.dumps, said))
    return folder, long


def audiofolder(root: Path) -> Path:
    """`data/`: metadata.jsonl in a folder for each split."""
    for split in ("train", "test"):
        for i in range(3):
            sound(root / split / f"{i}.wav", i, 0.3)
        rows = [
            {"file_name": f"{i}.wav", "transcription": f"{split} {i}", "speaker_id": i % 2}
            for i in range(3)
        ]
        lines(root / split / "metadata.jsonl", *map(json.dumps, rows))
    return root


LAYOUTS = {
    "folder": audiofolder,
    "librispeech": librispeech,
    "speech_commands": speech_commands,
    "common_voice": common_voice,
    "fleurs": fleurs,
    "mls": mls,
    "voxpopuli": voxpopuli,
    "kaldi": lambda root: kaldi(root)[0],
    "nemo": lambda root: nemo(root)[0],
    "lhotse": lambda root: lhotse(root)[0],
}
"""Kind of corpus -> f(empty folder) -> what `corpus.path` names."""
