"""fedsim's exact file sizes of wav2vec2-base, compared with the sizes in the paper's Figure 3.

    python -m benchmarks.model_sizes

Builds the architecture of facebook/wav2vec2-base-960h with random weights, on which sizes do not
depend, and with one scale per tensor, as in the paper. Explains the difference line by line.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from fedsim.base.units import MB
from fedsim.quant import modelfile
from fedsim.quant.activations import FLOAT
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.modelfile import Manifest, ModelFile
from fedsim.quant.packing import packed_bytes
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.switch import switch_of
from fedsim.speech.models import wrap_model

FORMAT = WeightFormat("per_tensor")
PAPER_MB = {5: 58.0, 6: 68.7, 7: 79.3, 8: 90.0}
"""Figure 3, top axis: the size at which the paper marks a uniform bit depth."""


def main() -> None:
    """Print the comparison; the 5-bit file is also written and measured."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    torch.manual_seed(0)
    module = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=32))  # the defaults are the base model
    model = wrap_model(module, Wav2Vec2FeatureExtractor(), tokenizer=object())
    switch = switch_of(model)
    stored = modelfile.store_leftovers(switch.full_leftovers())
    blank = Manifest("base", modelfile.fingerprint(model.layers), "per_tensor", False, ())
    sizes = modelfile.model_sizes(model.layers, stored, blank, tuple(PAPER_MB))
    positional = next(x for x in model.layers if x.name.endswith("pos_conv_embed.conv"))
    n = sum(layer.n_weights for layer in model.layers)
    left = sum(t.nbytes for t in stored.values())
    scales = 2 * len(model.layers)
    inputs = (8 + 1) * len(model.layers)
    header = sizes.fixed_bytes - left - scales - inputs
    print(f"{len(model.layers)} layers, {n:,} weights; {positional.n_weights:,} of them positional")
    print("bits   paper MB   ours MB   ratio   difference MB = positional + rest + unexplained")
    for bits, paper in PAPER_MB.items():
        ours = sizes.total([bits] * len(model.layers)) / MB
        moved = (packed_bytes(positional.n_weights, bits) - positional.n_weights) / MB
        rest = sizes.fixed_bytes / MB
        print(
            f"{bits:4}   {paper:8.1f}   {ours:7.2f}   {ours / paper:.3f}   {ours - paper:+.2f} = "
            f"{moved:+.2f} {rest:+.2f} {ours - paper - moved - rest:+.2f}"
        )
    print(
        f"rest: leftovers (biases, norms) {left:,} bytes, scales {scales:,}, activation ranges "
        f"and depths {inputs:,}, header {header:,}"
    )
    bits = min(PAPER_MB)
    full = switch.full_weights()
    weights = tuple(quantize_weight(full[x.name], bits, FORMAT) for x in model.layers)
    plan = (bits,) * len(model.layers)
    manifest = Manifest(blank.model, blank.fingerprint, "per_tensor", False, plan)
    file = ModelFile(manifest, weights, (FLOAT,) * len(model.layers), stored)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.safetensors"
        written = modelfile.write(path, model.layers, file)
        assert written == path.stat().st_size == sizes.total(plan)
    print(f"written at {bits} bits: {written:,} bytes, as planned to the byte")


if __name__ == "__main__":
    main()
