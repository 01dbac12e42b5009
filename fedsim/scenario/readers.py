"""The kinds of corpus that `corpus.kind` names: one entry for each layout that is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedsim.registry import Lazy, Registry

OPTIONAL_KEYS = (
    *("path", "population", "config", "split", "columns", "speakers"),
    *("leave_out", "max_seconds", "convert", "duplicates"),
)
"""Keys of the section that only some kinds of corpus use."""
_CHOSEN = ("columns", "speakers", "leave_out", "max_seconds", "convert", "duplicates")
_RECORDED = ("split", *_CHOSEN)


@dataclass(frozen=True)
class CorpusReader:
    """One kind of corpus: how it is opened, and which settings it uses."""

    open: Callable[..., Any]
    """f(`CorpusSettings`, seed) -> `fedsim.speech.clips.Clients`, keys in sorted order.

    The clips of a client depend on the settings, the seed and its key, never on other clients."""
    summary: str
    needs: tuple[str, ...] = ()
    """Keys among `OPTIONAL_KEYS` that must be given."""
    takes: tuple[str, ...] = OPTIONAL_KEYS
    """Keys among `OPTIONAL_KEYS` that may be given."""
    has_sessions: bool = False
    """Whether another seed gives further clips of the same clients: a second session."""
    read: Callable[..., Any] | None = None
    """f(`CorpusSettings`) -> `fedsim.speech.readers.base.Recordings`, of a layout on disk."""
    recognizes: Callable[..., bool] | None = None
    """f(folder or file) -> whether it has this layout: kind `auto` asks all entries."""
    sign: str = ""
    """What `recognizes` looks for."""
    reads_all: bool = False
    """Whether results depend on every file below the path; else on what `read` names."""
    fields: str = ""
    """What is read, for the guide."""
    splits: str = "-"
    """What `corpus.split` chooses, for the guide."""
    tested: str = ""
    """What its test reads, for the guide."""
    unsupported: str = ""
    """What is not, and why, for the guide."""


READERS: Registry[CorpusReader] = Registry("corpus")


def _add_layout(name: str, summary: str, *more: str, **traits: Any) -> None:
    """Register a layout on disk; its functions are in `fedsim.speech.readers.<name>`."""
    READERS.add(
        name,
        CorpusReader(
            Lazy("fedsim.speech.readers.recorded:open_recorded"),
            summary=summary,
            needs=("path",),
            takes=(*_RECORDED, *more),
            read=Lazy(f"fedsim.speech.readers.{name}:read_{name}"),
            recognizes=Lazy(f"fedsim.speech.readers.{name}:is_{name}"),
            **traits,
        ),
    )


READERS.add(
    "auto",
    CorpusReader(
        Lazy("fedsim.speech.readers.recorded:open_recorded"),
        summary="The layout that the folder or manifest at `path` has; owner/name is a hub id.",
        needs=("path",),
        takes=("config", *_RECORDED),
    ),
)
_add_layout(
    "folder",
    "A local folder in the AudioFolder layout: audio files, metadata.csv or metadata.jsonl.",
    sign="metadata.csv or metadata.jsonl, in the folder or in one of its folders",
    fields="file_name; text, speaker, gender, language or what corpus.columns names",
    splits="the folder with the metadata, where the top has none",
    reads_all=True,
    tested="WAV with metadata.csv, also from a spreadsheet; metadata.jsonl in train/ and test/",
    unsupported="metadata.parquet and labels by folder name: write metadata.csv",
)
_add_layout(
    "librispeech",
    "LibriSpeech as openslr.org serves it: chapter folders with .trans.txt and SPEAKERS.TXT.",
    "config",
    sign="SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt",
    fields="text of .trans.txt; speaker and chapter of the name; gender of SPEAKERS.TXT",
    splits="the part, as test-clean or as split test and config clean",
    tested="FLAC of test-clean and dev-other, with and without SPEAKERS.TXT",
    unsupported="BOOKS.TXT and CHAPTERS.TXT: nothing in them is used",
)
_add_layout(
    "speech_commands",
    "Speech Commands v0.02 as Google serves it: word folders, testing and validation lists.",
    "config",
    sign="testing_list.txt and validation_list.txt",
    fields="word of the folder; speaker of the file's name",
    splits="test and validation: the lists; train: all other clips",
    tested="three words of three speakers, with noise and a Macintosh's ._ files",
    unsupported="_background_noise_: no utterances; the separate test set archive: it has no lists",
)
_add_layout(
    "common_voice",
    "Common Voice as downloaded: clips/ and one TSV for each split.",
    "config",
    sign="clips/ and a TSV with client_id, path and sentence, in the folder or one level below",
    fields="client_id, sentence, gender, accents or accent, locale",
    splits="the TSV: train, dev, test, validated, other, invalidated",
    tested="MP3 at 32 kHz in four languages; open quotation marks, old and new genders, accent",
    unsupported="clips still in .tar: unpack them",
)
_add_layout(
    "fleurs",
    "FLEURS as downloaded: TSV without a header, and folders of WAV.",
    "config",
    sign="test.tsv, dev.tsv or train.tsv of 7 columns, the second a WAV, in LANGUAGE/",
    fields="raw_transcription (text) or transcription, gender, language of the folder",
    splits="the TSV: train, dev, test",
    tested="WAV of three languages, in Google's folders and in the hub's",
    unsupported="audio/*.tar.gz: unpack it; speakers: FLEURS does not name them",
)
_add_layout(
    "mls",
    "Multilingual LibriSpeech as openslr.org serves it: transcripts.txt, audio/ and metainfo.txt.",
    "config",
    sign="SPLIT/transcripts.txt and SPLIT/audio/, in the folder or in mls_LANGUAGE/",
    fields="text; speaker and book of the id; gender of metainfo.txt; language of the folder",
    splits="the folder: train, dev, test",
    tested="Opus of two speakers of Polish",
    unsupported="limited_supervision lists: train is read whole",
)
_add_layout(
    "voxpopuli",
    "VoxPopuli's transcribed data as its own script writes it: asr_SPLIT.tsv and OGG by year.",
    "config",
    sign="asr_train.tsv, asr_dev.tsv or asr_test.tsv, in the folder or in LANGUAGE/",
    fields="normalized_text (text) or raw_text, speaker_id, gender, language of the folder",
    splits="the TSV: train, dev, test",
    tested="OGG of three years of Croatian, one of nobody",
    unsupported="uncut sessions and asr_LANGUAGE.tsv.gz: cut them with VoxPopuli's get_asr_data",
)
_add_layout(
    "kaldi",
    "A data folder of Kaldi or ESPnet: wav.scp, text, utt2spk, spk2gender, segments.",
    sign="wav.scp, in the folder or in one of its folders",
    fields="text, utt2spk, spk2gender, utt2lang; begin and end of segments",
    splits="the folder with wav.scp, where the top has none",
    tested="two recordings in four segments, one to the end; commands, archives, wrong lines",
    unsupported="commands (`... |`): never run; archives (FILE.ark:OFFSET): write WAV or FLAC",
)
_add_layout(
    "nemo",
    "A NeMo manifest: one JSON object per line, with audio_filepath.",
    sign="a .json or .jsonl file whose lines have audio_filepath, or a folder of such files",
    fields="offset, duration, text, speaker, gender, lang or source_lang",
    splits="SPLIT_manifest.json, SPLIT.json or manifest.json, in a folder",
    tested="two segments of one file and a whole one; wrong lines",
    unsupported="tarred audio: unpack it",
)
_add_layout(
    "lhotse",
    "Lhotse manifests: recordings and supervisions, or cuts, as .jsonl or .jsonl.gz.",
    sign="recordings and supervisions (or cuts) .jsonl or .jsonl.gz",
    fields="text, speaker, gender, language; begin and end of supervisions",
    splits="the manifests whose name has it, where there are several",
    tested="recordings and supervisions of two splits; cuts; commands and URLs",
    unsupported="sources that are commands (never run), URLs or arrays; further channels;"
    " features; augmented recordings: export audio files",
)
READERS.add(
    "hub",
    CorpusReader(
        Lazy("fedsim.speech.readers.recorded:open_recorded"),
        summary="A data set that `datasets.load_dataset` finds: a hub id, or a folder of Parquet"
        " files.",
        needs=("path",),
        takes=("config", *_RECORDED),
        read=Lazy("fedsim.speech.readers.hub:read_hub"),
        recognizes=Lazy("fedsim.speech.readers.hub:is_hub"),
        sign="Parquet or Arrow files",
        reads_all=True,
        fields="audio; text, speaker, gender, language or what corpus.columns names",
        splits="the split of the data set, also test[:100]",
        tested="Parquet in the form of LibriSpeech, FLEURS and Speech Commands on the hub",
        unsupported="data sets that need a loading script: `datasets` runs none",
    ),
)
READERS.add(
    "voices",
    CorpusReader(
        Lazy("fedsim.speech.voices.population:open_population"),
        summary="Any number of synthetic speakers; needs the extra fedsim-speech[voices].",
        needs=("population",),
        takes=(),
        has_sessions=True,
    ),
)
