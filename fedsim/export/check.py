"""Does an exported model hear what fedsim's emulation of it hears, and what does it take?"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsim.base.clip_counts import ClipCounts
from fedsim.base.statistics import Comparison, compare
from fedsim.errors import FedsimError
from fedsim.export import Exported, require
from fedsim.export.onnx_run import NO_ANSWER
from fedsim.quant.formats import FORMATS
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import dequantize_weight
from fedsim.speech.models.base import transcribe_clips
from fedsim.speech.scoring import count_errors

if TYPE_CHECKING:
    import torch

    from fedsim.quant.rows import Rows
    from fedsim.quant.weights import PackedWeight
    from fedsim.speech.models.base import SpeechModel


@dataclass(frozen=True)
class Ran:
    """Clips once transcribed by the exported file."""

    setting: str
    """Of the format's program."""
    transcripts: tuple[str, ...]
    ms_per_s: float
    """Milliseconds of work for each second of audio, on one thread."""
    loaded_bytes: int
    """Peak memory to load the model, above that of a process with the runtime."""
    work_bytes: int
    """Peak memory over all clips, above the same."""


@dataclass(frozen=True)
class Checked:
    """What was heard, clip by clip."""

    emulated: tuple[str, ...]
    """By fedsim, with these weights and inputs in float32."""
    ran: tuple[Ran, ...]
    """By the exported files, in each setting of the format's program."""

    def equal(self, ran: Ran) -> int:
        """Return how many transcripts equal the emulation's."""
        return sum(a == b for a, b in zip(ran.transcripts, self.emulated, strict=True))


def check(
    model: SpeechModel,
    weights: Sequence[PackedWeight],
    leftovers: Mapping[str, torch.Tensor],
    exported: Exported,
    clips: Sequence[np.ndarray],
    *,
    rows: Rows | None = None,
    language: str | None = None,
) -> Checked:
    """Transcribe clips (1-D float32, 16 kHz) with the exported file and with fedsim.

    The other arguments are those of `fedsim.export.export`.

    Raises:
        FedsimError: if the runtime is not installed or refuses the files.
    """
    chosen = FORMATS[exported.format]
    require(chosen.program.package, chosen.extra)
    switch = switch_of(model)
    pairs = zip(model.layers, weights, strict=True)
    full = {layer.name: dequantize_weight(one) for layer, one in pairs}
    switch.install(full, leftovers, {}, rows=rows)
    try:
        emulated = transcribe_clips(model, clips, language)
    finally:
        switch.restore()
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "clips.npz"
        np.savez(file, **{f"{i:06d}": clip for i, clip in enumerate(clips)})  # type: ignore[arg-type]
        ran = tuple(
            run_exported(exported.folder, file, setting, to=exported.format)
            for setting in chosen.program.settings
        )
    return Checked(tuple(emulated), ran)


def worse(checked: Checked, texts: Sequence[str], seed: int = 0) -> list[tuple[Ran, Comparison]]:
    """Return what was run and is worse than fedsim's emulation: the 95 % interval of the paired
    difference in WER, over clips, is above 0.

    Args:
        checked: what was heard.
        texts: what is said in each clip.
        seed: of the resampled clips.
    """
    emulated = _counts(texts, checked.emulated)
    found = []
    for i, ran in enumerate(checked.ran):
        rng = np.random.default_rng(np.random.SeedSequence([seed, i]))
        heard = _counts(texts, ran.transcripts)
        difference = compare([heard], [emulated], rng, over_clients=False)
        if difference.verdict == "worse":
            found.append((ran, difference))
    return found


def _counts(texts: Sequence[str], transcripts: Sequence[str]) -> ClipCounts:
    each = [count_errors([a], [b]) for a, b in zip(texts, transcripts, strict=True)]
    wrong, of = zip(*((one.errors, one.words) for one in each), strict=True)
    return ClipCounts("", np.array(wrong), np.array(of))


def run_exported(folder: Path, clips: Path, setting: str | int, to: str = "onnx") -> Ran:
    """Transcribe the clips of an .npz file with an exported model, in a process of its own.

    Args:
        folder: of the exported files.
        clips: 1-D float32, 16 kHz.
        setting: of the format's program.
        to: the format.

    Raises:
        FedsimError: if the runtime refuses the files, or answers nothing.
    """
    program = FORMATS[to].program
    words = [sys.executable, "-m", program.module, str(folder), str(clips), str(setting)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        if done.returncode == NO_ANSWER:
            raise FedsimError(f"the files in {folder} cannot be used here: {reason}")
        raise FedsimError(
            f"{program.package} does not run {folder}: {reason}; install the {program.package} that"
            f" fedsim-speech[{FORMATS[to].extra}] asks for"
        )
    found = json.loads(done.stdout)
    start = found["start_bytes"]
    return Ran(
        str(setting),
        tuple(found["transcripts"]),
        1000 * found["work_s"] / found["audio_s"],
        found["loaded_bytes"] - start,
        found["peak_bytes"] - start,
    )
