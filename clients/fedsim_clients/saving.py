"""The files of a client's model, where the scenario keeps them."""

from __future__ import annotations

import hashlib
import os
import shutil

from fedsim.export import export_traced
from fedsim.protocol import messages as m
from fedsim.quant import modelfile
from fedsim.quant.activations import InputFormat
from fedsim.quant.formats import OWN
from fedsim.quant.modelfile import ModelFile
from fedsim_clients.calibration import Calibration

_MAX_NAME = 180
"""Bytes of a file's name, besides a hash, a suffix and what a temporary file adds."""


def save_model(
    calibration: Calibration, candidate: m.Candidate, inputs: tuple[InputFormat, ...]
) -> int:
    """Write a candidate's model file, and beside it what is exported; return the bytes that ship.

    What ships are the files of `clients.format`; fedsim's own file is always written, since only
    it can be loaded again.
    """
    runtime, audio = calibration.runtime, calibration.audio
    study, weights = audio.study(candidate), calibration.packed(candidate)
    manifest = runtime.study.manifest(candidate.bits, audio.data.language)
    file = ModelFile(manifest, weights, inputs, runtime.study.stored, study.rows)
    path = runtime.run_dir / "models" / model_name(audio.data.key, candidate.name)
    modelfile.write(path, runtime.model.layers, file)
    to = runtime.scenario.clients.format
    if to == OWN:
        return os.path.getsize(path)
    folder = path.with_name(f"{path.stem}-{to}")
    shutil.rmtree(folder, ignore_errors=True)  # the request came before, and its answer was lost
    language = audio.data.language
    return export_traced(
        runtime.traced, weights, folder, to=to, rows=study.rows, language=language
    ).nbytes


def model_name(client: str, candidate: str) -> str:
    """Return the file name of a client's model: different for each client, as readable as a name
    of a file, which has at most 255 bytes, can be."""
    text = f"{client}-{candidate}"
    plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in text)
    short = plain.encode()[:_MAX_NAME].decode(errors="ignore")
    if short != text:
        plain = short + "-" + hashlib.sha256(text.encode()).hexdigest()[:8]
    return plain + modelfile.SUFFIX
