"""How much the paper's studies compute, and so how long one GPU takes at least.

    python -m benchmarks.paper_operations

Prints, for each scenario of `scenarios/paper`, the forward passes of its combinations, the
operations of their layers (two per multiply-accumulate; attention's own products and decoding one
token at a time are not counted), and the hours that these take at `SUSTAINED` operations a second.
That rate is an assumption, about a third of the float32 peak of a data-centre GPU of 2022 without
TF32; nothing here was timed. Networks have the shape of the checkpoints, on torch's meta device,
which computes shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fedsim.quant.layers import find_layers, plain_weights
from fedsim.scenario import load_scenario
from fedsim.scenario.cells import forward_passes
from fedsim.scenario.matrix import expand

SUSTAINED = 2e13
"""Operations a second."""
META = torch.device("meta")


@dataclass(frozen=True)
class Kind:
    """A model of the paper, and the clips that it hears."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, torch.Tensor]]
    """Of one clip of mean length."""
    clients: int


def wav2vec2() -> nn.Module:
    """Return wav2vec 2.0 base, whose configuration is the default of transformers."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    return Wav2Vec2ForCTC(Wav2Vec2Config())


def whisper() -> nn.Module:
    """Return Whisper large."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        d_model=1280,
        encoder_layers=32,
        decoder_layers=32,
        encoder_attention_heads=20,
        decoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_ffn_dim=5120,
    )
    return WhisperForConditionalGeneration(config)


def conformer() -> nn.Module:
    """Return a large Conformer for 35 words, with the shape of wav2vec2-conformer-rel-pos-large."""
    from transformers import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForSequenceClassification

    config = Wav2Vec2ConformerConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        feat_extract_norm="layer",
        conv_bias=True,
        do_stable_layer_norm=True,
        num_labels=35,
    )
    return Wav2Vec2ConformerForSequenceClassification(config)


def audio(seconds: float) -> Callable[[], dict[str, torch.Tensor]]:
    """Return what makes one clip of raw audio."""
    return lambda: {"input_values": torch.empty(1, int(seconds * 16_000), device=META)}


def window() -> dict[str, torch.Tensor]:
    """Return Whisper's window of 30 s and 45 tokens."""
    return {
        "input_features": torch.empty(1, 80, 3000, device=META),
        "decoder_input_ids": torch.ones(1, 45, dtype=torch.long, device=META),
    }


LIBRISPEECH = Kind(wav2vec2, audio(7.4), 2)  # test-clean: 5.4 hours in 2,620 clips
KINDS = {"language": Kind(whisper, window, 10), "speaker": Kind(conformer, audio(1.0), 10)}


def macs(kind: Kind) -> int:
    """Return the multiply-accumulates of one clip's pass through the layers."""
    with META, torch.inference_mode():
        module = plain_weights(kind.make().eval())
        layers = find_layers(module, ())
        total = 0

        def hook(layer):  # type: ignore[no-untyped-def]
            def count(module: nn.Module, args: tuple, out: torch.Tensor) -> None:
                nonlocal total
                total += layer.n_weights * (out.numel() // layer.channels)

            return count

        for layer in layers:
            for name in (layer.name, *layer.aliases):
                found = module.get_submodule(name)
                if not isinstance(found, nn.Embedding):  # a table is looked up
                    found.register_forward_hook(hook(layer))
        module(**kind.inputs())
    return total


def main() -> None:
    """Print one line for each scenario."""
    of: dict[Kind, int] = {}
    print(f"{'scenario':24}{'passes':>9}{'GFLOP each':>12}{'PFLOP':>8}{'hours':>8}")
    for path in sorted(Path("scenarios/paper").glob("*.yaml")):
        kind = KINDS.get(path.stem, LIBRISPEECH)
        runs = [part.scenario for part in expand(load_scenario(path))]
        passes = sum(forward_passes(run, kind.clients) for run in runs)
        if kind not in of:
            of[kind] = macs(kind)
        each = 2 * of[kind]
        total = passes * each
        print(
            f"{path.stem:24}{passes:9,.0f}{each / 1e9:12.0f}{total / 1e15:8.1f}"
            f"{total / SUSTAINED / 3600:8.2f}"
        )


if __name__ == "__main__":
    main()
