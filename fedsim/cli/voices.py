"""`fedsim voices`: meet the synthetic speakers, or write their clips to a folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.base.units import count_words
from fedsim.cli.options import positive
from fedsim.errors import FedsimError, quoted

if TYPE_CHECKING:
    from fedsim.scenario.corpus import CorpusSettings
    from fedsim.speech.clips import Clients

_DESCRIPTION = """\
List the synthetic speakers of a population and the way each speaks. With --export, write their
clips as 16 kHz WAV files with a metadata.csv: an AudioFolder, which corpus kind "folder" reads
(and datasets.load_dataset("audiofolder", ...), where torchcodec is installed). The clips are the
test clips of a scenario with the same population and seed."""


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the command."""
    voices = verbs.add_parser(
        "voices",
        help="list synthetic speakers, or export their clips",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    voices.add_argument("--speakers", metavar="N", type=positive, default=10, help="default: 10")
    voices.add_argument(
        "--first", metavar="K", type=int, default=0, help="number of the first speaker (default: 0)"
    )
    voices.add_argument("--languages", metavar="LANG", nargs="+", default=["en"])
    voices.add_argument("--genders", metavar="GENDER", nargs="+", default=["female", "male"])
    voices.add_argument(
        "--topics", metavar="TOPIC", nargs="+", help="what they talk about; words: single words"
    )
    voices.add_argument("--sentences", metavar="FILE", help="say these instead, one a line")
    voices.add_argument(
        "--clips", metavar="N", type=positive, default=10, help="clips of each (default: 10)"
    )
    voices.add_argument("--seed", metavar="N", type=int, default=0, help="default: 0")
    voices.add_argument("--export", metavar="DIR", type=Path, help="write the clips to DIR")
    voices.set_defaults(verb=_voices)


def _voices(options: argparse.Namespace) -> int:
    if not 0 <= options.seed < 2**63:
        bound = "at least 0" if options.seed < 0 else f"at most {2**63 - 1}"
        raise FedsimError(f"--seed is {quoted(options.seed)}: must be {bound}")
    corpus = _corpus(options)

    from fedsim.speech.voices.population import open_population

    clients = open_population(corpus, options.seed)
    if options.export is None:
        _print_speakers(clients)
        return 0
    from rich.console import Console

    from fedsim.base import progress
    from fedsim.speech.voices.export import export_clips

    with progress.show(Console(stderr=True)):
        written = export_clips(clients, options.export)
    speakers = count_words(len(clients), "speaker")
    print(f"{count_words(written, 'clip')} of {speakers} in {options.export}")
    return 0


def _corpus(options: argparse.Namespace) -> CorpusSettings:
    """Return the corpus of the options; raises `FedsimError` for what a scenario would refuse."""
    from pydantic import ValidationError

    from fedsim.scenario.corpus import CorpusSettings
    from fedsim.scenario.explain import sentences

    people = {k: getattr(options, k) for k in ("speakers", "first", "languages", "genders")}
    people |= {k: v for k in ("topics", "sentences") if (v := getattr(options, k)) is not None}
    try:
        return CorpusSettings.model_validate(
            {
                "kind": "voices",
                "population": people,
                "group_by": "speaker",
                "tuning_clips": 1,
                "test_clips": options.clips,
            }
        )
    except ValidationError as error:

        def option(path: Sequence[str | int]) -> str:
            return next((f"--{part}" for part in path if part in people), "")

        raise FedsimError("\n".join(sentences(error, CorpusSettings, option))) from None


def _print_speakers(clients: Clients) -> None:
    from rich.console import Console
    from rich.table import Table

    from fedsim.speech.voices import Take

    table = Table(box=None, pad_edge=False)
    for head in ("speaker", "gender", "accent", "variant"):
        table.add_column(head)
    for head in ("words/min", "pitch", "vocal tract", "echo s", "SNR dB", "level dB"):
        table.add_column(head, justify="right")
    for client in clients.values():
        take = client.test[0].source
        assert isinstance(take, Take)
        who = take.speaker
        table.add_row(
            who.key,
            who.gender,
            who.accent,
            who.variant,
            f"{who.rate}",
            f"{who.pitch}",
            f"{who.tract:.2f}",
            f"{who.reverberation_s:.2f}",
            f"{who.snr_db:.0f}",
            f"{who.level_db:.0f}",
        )
    # Wider than the table, whatever the terminal: a number that is cut off names nobody.
    Console(width=200).print(table)
