"""Writing synthetic clips to a folder in the AudioFolder layout."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from fedsim.base import progress
from fedsim.errors import FedsimError
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.clips import GROUPS, Clients, read_utterance


def export_clips(clients: Clients, folder: Path) -> int:
    """Write every client's test clips as 16-bit WAV with a metadata.csv; return their number.

    Raises `FedsimError` if the folder is not empty or cannot be written.
    """
    import soundfile

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FedsimError(f"{folder} is not empty; name a new folder")
    written = 0
    shown = progress.current()
    shown.start(len(clients), ("export",))
    shown.stage("export", len(clients))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(("file_name", "text", *GROUPS))
            for client in clients.values():
                for clip in client.test:
                    path = folder / f"{clip.key}.wav"
                    path.parent.mkdir(exist_ok=True)
                    # Clips lie on a 16-bit grid, so integers lose nothing.
                    samples = (read_utterance(clip) * 32_768).astype(np.int16)
                    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
                    groups = [getattr(clip, name) for name in GROUPS]
                    table.writerow((f"{clip.key}.wav", clip.text, *groups))
                    written += 1
                shown.advance()
    except OSError as error:
        raise FedsimError(
            f"clips cannot be written to {folder}: {error}; name another folder"
        ) from error
    return written
