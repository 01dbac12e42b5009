"""A few short clips in exactly the form of three data sets of the hub: their configurations, files,
columns and types."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile
import toys

WOMEN, MEN = (121, 237, 1221, 1284), (61, 260, 672, 908)
"""Speakers of LibriSpeech test-clean."""
FLEURS = {
    "ca_es": "Catalan",
    "de_de": "German",
    "en_us": "English",
    "fr_fr": "French",
    "ja_jp": "Japanese",
    "ko_kr": "Korean",
    "nl_nl": "Dutch",
    "pl_pl": "Polish",
    "pt_br": "Portuguese",
    "ru_ru": "Russian",
}
COMMANDS = (
    *("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"),
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree", "wow"),
    *("backward", "forward", "follow", "learn", "visual"),
)
SILENCE = "_silence_"


def audio(seconds: float, seed: int, name: str) -> dict[str, Any]:
    """A clip as it lies in a parquet file, in the format that the name ends with."""
    buffer = io.BytesIO()
    kind = Path(name).suffix[1:].upper()
    soundfile.write(buffer, toys.clip(seconds, seed), toys.RATE, format=kind, subtype="PCM_16")
    return {"bytes": buffer.getvalue(), "path": name}


def write_parquet(file: Path, rows: Sequence[Mapping[str, Any]], features: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in features}
    # Not by datasets' own writer, which wants torchcodec to put audio into a table.
    pq.write_table(pa.table(columns, schema=features.arrow_schema), file)


def write_card(folder: Path, configs: Mapping[str, Mapping[str, str]]) -> None:
    """Write the card that names the files of each configuration and split."""
    import yaml

    listed = [
        {
            "config_name": config,
            "data_files": [{"split": split, "path": path} for split, path in files.items()],
        }
        for config, files in configs.items()
    ]
    text = yaml.safe_dump({"configs": listed}, sort_keys=False)
    (folder / "README.md").write_text(f"---\n{text}---\n")


def librispeech_features() -> Any:
    import datasets

    return datasets.Features(
        {
            "file": datasets.Value("string"),
            "audio": datasets.Audio(sampling_rate=16_000),
            "text": datasets.Value("string"),
            "speaker_id": datasets.Value("int64"),
            "chapter_id": datasets.Value("int64"),
            "id": datasets.Value("string"),
        }
    )


def write_librispeech(folder: Path, each: int = 3) -> Path:
    """`openslr/librispeech_asr`: `each` clips of eight speakers in clean, of two in other.

    The training clips are no parquet at all: whoever reads them fails.
    """
    for config, speakers in (("clean", WOMEN + MEN), ("other", (367, 1688))):
        rows = []
        for speaker in speakers:
            for i in range(each):
                name = f"{speaker}-{speaker + 9}-{i:04d}"
                rows.append(
                    {
                        "file": f"{name}.flac",
                        "audio": audio(0.2 + 0.02 * i, speaker + i, f"{name}.flac"),
                        "text": f"HE SAID {toys.WORDS[i % 10].upper()}",
                        "speaker_id": speaker,
                        "chapter_id": speaker + 9,
                        "id": name,
                    }
                )
        write_parquet(folder / config / "test/0000.parquet", rows, librispeech_features())
        train = folder / config / "train.100/0000.parquet"
        train.parent.mkdir()
        train.write_bytes(b"gigabytes that nobody wants to wait for")
    splits = ("train.100", "test")
    configs = ("clean", "other")
    write_card(folder, {c: {s: f"{c}/{s}/*.parquet" for s in splits} for c in configs})
    return folder


def fleurs_features() -> Any:
    import datasets

    groups = ["western_european_we", "eastern_european_ee", "chinese_japanase_korean_cjk"]
    return datasets.Features(
        {
            "id": datasets.Value("int32"),
            "num_samples": datasets.Value("int32"),
            "path": datasets.Value("string"),
            "audio": datasets.Audio(sampling_rate=16_000),
            "transcription": datasets.Value("string"),
            "raw_transcription": datasets.Value("string"),
            "gender": datasets.ClassLabel(names=["male", "female", "other"]),
            "lang_id": datasets.ClassLabel(names=list(FLEURS)),
            "language": datasets.Value("string"),
            "lang_group_id": datasets.ClassLabel(names=groups),
        }
    )


def write_fleurs(folder: Path, each: int = 5) -> Path:
    """`google/fleurs`: `each` clips of every one of the paper's languages."""
    for place, (config, language) in enumerate(FLEURS.items()):
        rows = []
        for i in range(each):
            name = f"{place}{i}.wav"
            seconds = 0.3 + 0.05 * i
            rows.append(
                {
                    "id": 1500 + i,
                    "num_samples": round(seconds * toys.RATE),
                    "path": f"/home/user/.cache/{name}",
                    "audio": audio(seconds, 10 * place + i, name),
                    "transcription": f"{language.lower()} {i}",
                    "raw_transcription": f"{language}, {i}.",
                    "gender": i % 2,
                    "lang_id": place,
                    "language": language,
                    "lang_group_id": 0,
                }
            )
        file = folder / f"parquet-data/{config}/test-00000-of-00001.parquet"
        write_parquet(file, rows, fleurs_features())
    write_card(folder, {c: {"test": f"parquet-data/{c}/test-*"} for c in FLEURS})
    return folder


def commands_features(*, label: Any = None) -> Any:
    import datasets

    return datasets.Features(
        {
            "file": datasets.Value("string"),
            "audio": datasets.Audio(sampling_rate=16_000),
            "label": label or datasets.ClassLabel(names=[*COMMANDS, SILENCE]),
            "is_unknown": datasets.Value("bool"),
            "speaker_id": datasets.Value("string"),
            "utterance_id": datasets.Value("int8"),
        }
    )


def write_commands(folder: Path, counts: Mapping[str, int]) -> Path:
    """`google/speech_commands`: so many words of each speaker, and two clips of noise."""
    rows = []

    def say(word: str, speaker: str | None, number: int) -> None:
        name = f"{word}/{speaker}_nohash_{number}.wav"
        rows.append(
            {
                "file": name,
                "audio": audio(0.15, len(rows), name),
                "label": (*COMMANDS, SILENCE).index(word),
                "is_unknown": word in COMMANDS[10:],
                "speaker_id": speaker,
                "utterance_id": number,
            }
        )

    for speaker, count in counts.items():
        for i in range(count):
            say(COMMANDS[(7 * i) % len(COMMANDS)], speaker, i % 5)
    say(SILENCE, None, 0)
    say(SILENCE, next(iter(counts)), 0)  # no such row is on the hub, where noise has no speaker
    write_parquet(folder / "v0.02/test-00000-of-00001.parquet", rows, commands_features())
    write_card(folder, {"v0.02": {"test": "v0.02/test-*"}})
    return folder
