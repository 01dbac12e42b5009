"""How fast is synthetic speech made? Sentences rendered by two processes.

    python -m benchmarks.voices [--clips 1000] [--processes 2]

Prints clips and seconds of speech per second, and the synthesizer's share of a clip's time.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from fedsim.scenario.corpus import TOPICS
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.voices import Take, render
from fedsim.speech.voices.sentences import draw_sentences
from fedsim.speech.voices.speaker import speaker
from fedsim.speech.voices.synthesizer import synthesize


def samples_of(take: Take) -> int:
    """Render a take and return its length."""
    return len(render(take))


def main() -> None:
    """Print the two rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    texts = draw_sentences("en", TOPICS, "test", options.clips, np.random.default_rng(0))
    takes = [Take(speaker("en", i // 10), text) for i, text in enumerate(texts)]
    with ProcessPoolExecutor(options.processes) as processes:
        list(processes.map(samples_of, takes[: 20 * options.processes]))  # start the processes
        began = time.perf_counter()
        samples = sum(processes.map(samples_of, takes, chunksize=20))
        seconds = time.perf_counter() - began
    print(f"{options.clips / seconds:.0f} clips/s, {samples / SAMPLE_RATE / seconds:.0f} s/s")
    few = takes[:200]
    began = time.perf_counter()
    for take in few:
        render(take)
    whole = time.perf_counter() - began
    began = time.perf_counter()
    for take in few:
        voice = f"{take.speaker.accent}+{take.speaker.variant}"
        synthesize(take.text, voice, rate=take.speaker.rate, pitch=50, pitch_range=50)
    print(f"synthesizer: {100 * (time.perf_counter() - began) / whole:.0f} % of a clip's time")


if __name__ == "__main__":
    main()
