"""`fedsim init`."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from fedsim.base.files import write_text
from fedsim.errors import FedsimError

_DESCRIPTION = """\
Write a scenario to start from: a small study on synthetic voices, with every setting of how models
are quantized written out at its default. Change model, corpus and budgets, and run it."""
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
    init.add_argument("file", metavar="FILE", help="YAML file to write, such as my_study.yaml")
    init.set_defaults(verb=_init)


def _init(options: argparse.Namespace) -> int:
    path = Path(options.file)
    if os.path.lexists(path):
        raise FedsimError(f"{path} exists: name another file, or remove it")
    if path.suffix not in (".yaml", ".yml"):
        raise FedsimError(f"{path}: a scenario is a YAML file: end its name with .yaml")
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", path.stem).lstrip("._-") or "study"
    text = _TEMPLATE.format(file=path, name=name, quantization=_defaults())
    try:
        write_text(path, text)
    except OSError as error:
        raise FedsimError(
            f"{path} cannot be written: {error.strerror}; choose a folder that is writable"
        ) from error
    print(f"{path}: change it, then: fedsim validate {path} && fedsim run {path}")
    return 0


def _defaults() -> str:
    """Return every setting of the section `quantization` at its default, with its description."""
    from fedsim.base.yamltree import dump
    from fedsim.scenario.quantization import QuantizationSettings

    values = QuantizationSettings().model_dump(mode="json")
    lines = []
    for key, field in QuantizationSettings.model_fields.items():
        lines.append(f"  # {field.description}")
        lines.append(f"  {dump({key: values[key]}).strip()}")
    return "\n".join(lines)
