"""Synthetic voices in a folder, the accent of each in place of the speaker: clients are accents.

    python -m benchmarks.accents FOLDER [--speakers 160] [--clips 5]
    fedsim run scenarios/personal.yaml --set 'matrix={}' 'corpus={kind: folder, path: FOLDER,
        group_by: speaker, tuning_clips: 16, test_clips: 54}'

The folder is in the AudioFolder layout, as `fedsim voices --export` writes it.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.voices.export import export_clips
from fedsim.speech.voices.population import open_population
from fedsim.speech.voices.speaker import speaker


def main() -> None:
    """Write the clips, then the table anew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--speakers", type=int, default=160)
    parser.add_argument("--clips", type=int, default=5)
    options = parser.parse_args()
    corpus = CorpusSettings.model_validate(
        {
            "kind": "voices",
            "group_by": "speaker",
            "population": {"speakers": options.speakers},
            "tuning_clips": 1,
            "test_clips": options.clips,
        }
    )
    print(f"{export_clips(open_population(corpus, 0), options.folder):,} clips")
    table = options.folder / "metadata.csv"
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        language, number = row["speaker"].rsplit("-", 1)
        row["speaker"] = speaker(language, int(number)).accent
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
