"""`fedsim export`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.errors import FedsimError

if TYPE_CHECKING:
    import numpy as np

    from fedsim.export import Exported
    from fedsim.export.check import Checked
    from fedsim.personal import PersonalizedModel
    from fedsim.speech.clips import Utterance

_DESCRIPTION = """\
Write a model file for another runtime, ONNX or OpenVINO, with the weights packed as they are. The
exported file then transcribes clips in a process of its own, and what it hears is compared with
what fedsim hears with the same weights: transcripts, word errors, milliseconds, memory."""
_CLIPS = 16


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the command."""
    export = verbs.add_parser(
        "export",
        help="write a model file for another runtime, and check it there",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    export.add_argument(
        "file", metavar="MODEL_FILE", help="of PersonalizedModel.save, or of a run with save_models"
    )
    export.add_argument(
        "--to", metavar="FORMAT", default="onnx", help="onnx (the default) or openvino"
    )
    export.add_argument(
        "--out", metavar="DIR", type=Path, help="folder to make (default: the file's name)"
    )
    export.add_argument(
        "--model", metavar="ID", help="the full-precision model, if the file's own name of it fails"
    )
    export.add_argument(
        "--widen",
        action="store_true",
        help="store bit depths that the format lacks at the next one that it has",
    )
    export.add_argument(
        "--clips",
        metavar="FOLDER",
        help=f"recordings to check with, {_CLIPS} at most (default: synthetic voices)",
    )
    export.add_argument("--no-check", action="store_true", help="only write the files")
    export.set_defaults(verb=_export)


def _export(options: argparse.Namespace) -> int:
    from fedsim.personal import load_personalized

    if options.no_check and options.clips:
        raise FedsimError("--clips is for the check, which --no-check leaves out: remove one")
    model = load_personalized(options.file, options.model, device="cpu")
    spoken = [] if options.no_check else _spoken(options.clips, _language(model))
    out = options.out or Path(f"{Path(options.file).stem}-{options.to}")
    exported = model.export(out, to=options.to, widen=options.widen)
    _print_files(exported, model, options.to)
    window = getattr(model.model, "window", None)
    if window is not None:
        print(f"hears the first {window:g} s of a clip")
    if spoken:
        _check(model, exported, spoken)
    return 0


def _language(model: PersonalizedModel) -> str:
    """Return the language of whoever speaks, as a code."""
    code = getattr(model.model, "language_code", lambda language: language)
    return code(model.language) or "en"


def _spoken(folder: str | None, language: str) -> list[Utterance]:
    """Return the clips to check with, and what is said in them."""
    from fedsim.scenario.corpus import CorpusSettings, PopulationSettings

    if folder is not None:
        from fedsim.speech.readers import read_recordings

        settings = CorpusSettings(path=folder, group_by="speaker")
        return read_recordings(settings).utterances[:_CLIPS]
    from fedsim.speech.voices.population import open_population

    people = PopulationSettings(speakers=_CLIPS, languages=(language,))
    settings = CorpusSettings(
        kind="voices", population=people, group_by="speaker", tuning_clips=1, test_clips=1
    )
    return [client.test[0] for client in open_population(settings, 0).values()]


def _print_files(exported: Exported, model: PersonalizedModel, to: str) -> None:
    for name, size in exported.files.items():
        print(f"{exported.folder / name}: {size:,} bytes")
    wider = exported.nbytes - model.nbytes
    text = f"{abs(wider):,} {'more' if wider > 0 else 'fewer'} than the model file"
    if model.format == to:
        text += "; the budget was for these files, so they fit"
    print(f"together {exported.nbytes:,} bytes, {text}")


def _check(model: PersonalizedModel, exported: Exported, spoken: Sequence[Utterance]) -> None:
    """Transcribe clips with the exported files and print the comparison."""
    from rich.console import Console
    from rich.table import Table

    from fedsim.base.units import MB
    from fedsim.export.check import check
    from fedsim.quant.formats import FORMATS
    from fedsim.quant.modelfile import load_leftovers
    from fedsim.speech.audio import SAMPLE_RATE
    from fedsim.speech.clips import read_utterance
    from fedsim.speech.scoring import count_errors

    window = getattr(model.model, "window", math.inf)
    read = [(one, read_utterance(one, convert=True)) for one in spoken]
    fitting = [(one, clip) for one, clip in read if len(clip) <= window * SAMPLE_RATE]
    if not fitting:
        raise FedsimError(
            f"all clips are longer than the {window:g} s that the model hears: name a folder with"
            f" shorter ones (--clips), or leave out the check (--no-check)"
        )
    if left_out := len(read) - len(fitting):
        print(f"{left_out} of {len(read)} clips are longer, and left out below")
    spoken, clips = zip(*fitting, strict=True)
    leftovers = load_leftovers(model.file.leftovers)
    checked = check(
        model.model,
        model.file.weights,
        leftovers,
        exported,
        clips,
        rows=model.file.rows,
        language=model.language,
    )
    texts = [one.text or "" for one in spoken]

    def wer(transcripts: Sequence[str]) -> str:
        if not all(texts):
            return "-"
        counts = count_errors(texts, transcripts)
        return f"{100 * counts.errors / counts.words:.1f}" if counts.words else "-"

    table = Table(box=None, pad_edge=False)
    table.add_column(f"{len(clips)} clips")
    program = FORMATS[exported.format].program
    names = (program.settings[ran.setting] for ran in checked.ran)
    heads = ["fedsim", *(f"{program.package}, {name}" for name in names)]
    for head in heads:
        table.add_column(head, justify="right")
    equal = [f"{checked.equal(ran)}" for ran in checked.ran]
    table.add_row("transcripts equal to fedsim's", "", *equal)
    table.add_row("WER %", wer(checked.emulated), *(wer(ran.transcripts) for ran in checked.ran))
    table.add_row("ms per second of audio", "", *(f"{ran.ms_per_s:.1f}" for ran in checked.ran))
    for name, field in (("loaded", "loaded_bytes"), ("at work", "work_bytes")):
        values = [f"{getattr(ran, field) / MB:.1f}" for ran in checked.ran]
        table.add_row(f"peak memory MB, {name}", "", *values)
    print()
    Console(width=200).print(table)
    print(
        f"\n{program.legend}\nfedsim: the same weights, inputs not rounded. One thread; memory"
        " above that of a process with\nthe runtime."
    )
    if all(texts):
        _require_alike(model, exported, checked, texts, clips)


def _require_alike(
    model: PersonalizedModel,
    exported: Exported,
    checked: Checked,
    texts: Sequence[str],
    clips: Sequence[np.ndarray],
) -> None:
    """Raise `FedsimError` if the files are worse than fedsim's emulation, with the layer where they
    part."""
    from fedsim.export.check import worse
    from fedsim.quant.formats import FORMATS

    program = FORMATS[exported.format].program
    for ran, found in worse(checked, texts):
        pairs = zip(ran.transcripts, checked.emulated, strict=True)
        clip = next(i for i, (heard, emulated) in enumerate(pairs) if heard != emulated)
        is_exact = ran.setting == next(iter(program.settings))
        step = f"try another {program.package}" if is_exact else f"set {program.remedy}"
        parting = _where_it_parts(model, exported, clips[clip], ran.setting)
        steps = [parting, f"{step}, or keep the layer in full precision (keep)"]
        what = f"{program.package}, {program.settings[ran.setting]},"
        raise FedsimError(
            "; ".join([f"{exported.folder}: {found.sentence(what, 'fedsim', 'WER')}", *steps])
        )


def _where_it_parts(
    model: PersonalizedModel, exported: Exported, clip: np.ndarray, setting: str
) -> str:
    """Return in words which layer's output is the first to part from that in float32."""
    from fedsim.export.parting import first_parting
    from fedsim.quant.formats import FORMATS
    from fedsim.quant.modelfile import load_leftovers

    to, weights = exported.format, model.file.weights
    traced = FORMATS[to].trace(model.model, load_leftovers(model.file.leftovers))
    parting = first_parting(
        model.model, traced, weights, exported.folder, clip, to=to, setting=setting
    )
    if parting is None:
        return "no layer parts from the same graph in float32"
    return (
        f"the first layer that parts is {parting.layer!r} ({parting.graph}): its output is off by"
        f" {100 * parting.difference:.1f} %, that of the graph by {100 * parting.final:.1f} %"
    )
