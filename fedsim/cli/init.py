"""`fedsim init`."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from textwrap import indent

from fedsim.base.files import write_text
from fedsim.base.text import plain_name
from fedsim.errors import FedsimError

_DESCRIPTION = """\
Write a scenario to start from. With a YAML file to write: a small study on synthetic voices, with
every setting of how models are quantized written out at its default. With a folder of recordings
(or a manifest of them): a scenario that runs on these, with what was chosen and why as comments:
layout, what makes one client, how many clips each can spare, budgets by the model's own size."""
_MODEL = "bundled:ctc"
_TEMPLATE = """\
# fedsim run {file}
name: {name}
description: |
  What the study shows; fedsim list prints this line.
seed: 1
model:
  id: bundled:ctc             # a hub id, a folder in the transformers layout, or bundled:ctc
corpus:
  kind: voices                # or folder or hub, with path: an AudioFolder, a data set
  group_by: speaker           # what makes one client: speaker, gender or language
  population: {{speakers: 8}}
  tuning_clips: 16            # unlabelled
  test_clips: 40              # held out
clients:
  budget_mb: [1.0, 1.2, 1.6]  # given to the clients in turn; or one number, or {{client: MB}}
quantization:
{quantization}
methods:
  - fp32
  - uniform
  - {{allocation: myqasr, rounding: nearest}}   # the paper
  - knapsack
"""


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the command."""
    init = verbs.add_parser(
        "init",
        help="write a scenario to start from",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    init.add_argument(
        "place",
        metavar="FILE.yaml|FOLDER",
        help="YAML file to write, such as my_study.yaml, or a folder of recordings to look at",
    )
    init.add_argument(
        "--model",
        metavar="ID",
        help=f"for a folder: hub id, bundled:NAME, cache:NAME or folder (default: {_MODEL})",
    )
    init.add_argument(
        "--out",
        metavar="FILE.yaml",
        type=Path,
        help="for a folder: the file to write (default: the folder's name, in the working folder)",
    )
    init.set_defaults(verb=_init, wrong_usage=init.error)


def _init(options: argparse.Namespace) -> int:
    place = Path(options.place)
    if _is_yaml(place) and not os.path.isdir(place):
        if options.model or options.out:
            options.wrong_usage("--model and --out go with a folder of recordings")
        return _write(place, lambda: _voices(place))
    if not os.path.lexists(place):
        raise FedsimError(
            f"{place}: this folder of recordings does not exist: check the path, or to write a"
            f" scenario on synthetic voices end the name with .yaml"
        )
    if options.out is None:
        whole = place.resolve()
        name = whole.name if whole.is_dir() else whole.stem
        out = Path(f"{plain_name(name, 'study')}.yaml")
    else:
        out = options.out
    return _write(out, lambda: _recordings(place, options.model or _MODEL, out))


def _is_yaml(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml")


def _write(path: Path, make: Callable[[], str]) -> int:
    """Write the text that `make` returns to a new file."""
    if os.path.lexists(path):
        raise FedsimError(f"{path} exists: name another file, or remove it")
    if not _is_yaml(path):
        raise FedsimError(f"{path}: a scenario is a YAML file: end its name with .yaml")
    text = make()
    try:
        write_text(path, text)
    except OSError as error:
        raise FedsimError(
            f"{path} cannot be written: {error.strerror}; choose a folder that is writable"
        ) from error
    file = shlex.quote(str(path))
    print(f"{path}: change it, then: fedsim validate {file} && fedsim run {file}")
    return 0


def _voices(path: Path) -> str:
    return _TEMPLATE.format(
        file=path, name=plain_name(path.stem, "study"), quantization=_defaults()
    )


def _recordings(folder: Path, model: str, out: Path) -> str:
    from fedsim.runner.starter import starter

    return starter(folder, model, out)


def _defaults() -> str:
    """Return every setting of the section `quantization` at its default, with its description."""
    from fedsim.base.yamltree import dump
    from fedsim.scenario.quantization import QuantizationSettings

    values = QuantizationSettings().model_dump(mode="json")
    lines = []
    for key, field in QuantizationSettings.model_fields.items():
        lines.append(f"  # {field.description}")
        lines.append(indent(dump({key: values[key]}).strip(), "  "))
    return "\n".join(lines)
