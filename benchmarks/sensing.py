"""What sensing costs beyond the bare forward pass, how exact its medians are, and its memory.

    python -m benchmarks.sensing              (Whisper base needs python -m benchmarks.real_speech)

For a wav2vec2 of 44 layers and 3.1 M parameters, and for Whisper base on real prompts, prints the
ratio of sensing all layers to the bare forward pass over the same clips, as the median of several
alternating runs; the largest deviation of a layer's median from the exact one; and, for the
wav2vec2, the elements kept of 64 times the audio compared with 8 times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from benchmarks.fixtures import noise, prompts, small_wav2vec2, whisper_base
from fedsim.quant import sensitivity
from fedsim.quant.measures import MEASURES, Measure
from fedsim.quant.model import Batch
from fedsim.speech.models.base import SpeechModel, own_tokens, tuning_batches

ROUNDS = 7
COUNT = "elements-kept"

MEASURES.add(
    COUNT,
    Measure(lambda seen: float(len(seen.sample)), "Number of elements kept of the output."),
)


def seconds(run: Callable[[], object]) -> float:
    """Return the seconds that `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.inference_mode()
def forward(model: SpeechModel, batches: Sequence[Batch]) -> None:
    """Run the bare forward pass."""
    for batch in batches:
        model.forward(batch)


@torch.inference_mode()
def exact_medians(model: SpeechModel, batches: Sequence[Batch]) -> np.ndarray:
    """Return the median over all elements of |output| of each layer, padding included."""
    kept: dict[str, list[torch.Tensor]] = {layer.name: [] for layer in model.layers}
    modules = dict(model.module.named_modules())

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(module: torch.nn.Module, args: tuple, out: torch.Tensor) -> None:
            kept[name].append(out.abs().reshape(-1).clone())

        return hook

    handles = [modules[n].register_forward_hook(keep(n)) for n in kept]
    forward(model, batches)
    for handle in handles:
        handle.remove()
    return np.array([np.median(torch.cat(parts).numpy()) for parts in kept.values()])


def unpadded(batches: Sequence[Batch]) -> list[Batch]:
    """Return the batches with all frames counted, as `exact_medians` counts them."""
    return [Batch(b.inputs, targets=b.targets, language=b.language) for b in batches]


def compare(name: str, model: SpeechModel, batches: list[Batch]) -> None:
    """Print the cost ratio and the deviation from the exact medians."""
    bare, sensing = [], []
    forward(model, batches)
    for _ in range(ROUNDS):  # alternating, so that a slow phase of the machine affects both
        bare.append(seconds(lambda: forward(model, batches)))
        sensing.append(seconds(lambda: sensitivity.sense(model, batches)))
    ratio = statistics.median(s / b for s, b in zip(sensing, bare, strict=True))
    print(
        f"{name}: forward {statistics.median(bare):.3f} s, sensing "
        f"{statistics.median(sensing):.3f} s, ratio {ratio:.3f}"
    )
    whole = unpadded(batches)
    exact = exact_medians(model, whole)
    error = np.abs(sensitivity.sense(model, whole) / exact - 1)
    print(
        f"{name}: deviation from the exact median: largest {100 * error.max():.3f} %, "
        f"mean {100 * error.mean():.3f} % over {len(error)} layers"
    )


def kept_elements(model: SpeechModel, batches: Sequence[Batch]) -> int:
    """Return the number of elements that the samples of all layers hold after sensing."""
    batches = [replace(batch, alone=False) for batch in batches]  # they may be repeated
    return int(sensitivity.sense(model, batches, COUNT).sum())


def main() -> None:
    """Run both comparisons."""
    torch.set_num_threads(2)
    model = small_wav2vec2()
    batches = list(tuning_batches(model, noise(16, 1.6), None))
    compare("wav2vec2, 44 layers, 16 clips of 1.6 s", model, batches)
    eight, sixty_four = kept_elements(model, batches * 8), kept_elements(model, batches * 64)
    print(
        f"wav2vec2: elements kept of 64x the audio / of 8x: {sixty_four / eight:.3f} "
        f"({4 * sixty_four:,} bytes)"
    )
    whisper = whisper_base()
    tuning, _, _ = prompts("en", 8, 1)
    tokens = own_tokens(whisper, tuning, "en")
    batches = list(tuning_batches(whisper, tuning, tokens, "en"))
    compare("Whisper base, 99 layers, 8 real prompts", whisper, batches)


if __name__ == "__main__":
    main()
