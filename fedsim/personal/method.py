"""The method as a library call: one model, one user's clips, one budget, no federation.

pm = personalize("openai/whisper-base", clips, budget_mb=45, language="it")
pm.save("user.safetensors")
load_personalized("user.safetensors").transcribe(clips)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from fedsim.base.accelerators import AUTO as AUTO_DEVICE
from fedsim.base.accelerators import deterministic
from fedsim.base.units import MB
from fedsim.errors import FedsimError
from fedsim.personal.checks import check_options, check_share, check_words, checked_clips
from fedsim.personal.model import PersonalizedModel
from fedsim.quant.allocation import ALLOCATORS, allocate
from fedsim.quant.blending import mixed
from fedsim.quant.calibration import calibrate_layer
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.quant.formats import OWN
from fedsim.quant.granularities import GRANULARITIES, WeightFormat
from fedsim.quant.measures import MEASURES
from fedsim.quant.model import device_of
from fedsim.quant.modelfile import ModelFile
from fedsim.quant.moments import SecondMoments
from fedsim.quant.onepass import Passed, forward_only
from fedsim.quant.packable import own_sizes, packable
from fedsim.quant.profile import profile_of
from fedsim.quant.rounding import ROUNDINGS
from fedsim.quant.rounding.plan import round_plan, without_moments
from fedsim.quant.sensitivity import sense
from fedsim.quant.weights import PackedWeight, dequantize_weight
from fedsim.speech.models import load_model
from fedsim.speech.models.base import SpeechModel, public_signal
from fedsim.speech.public import public_request, public_set
from fedsim.speech.public_model import PublicModel, own_losses
from fedsim.speech.public_set import PublicClip, PublicSet, public_set_of
from fedsim.speech.tuning import tuning_pass
from fedsim.speech.vocabulary import DEFAULT_OWN, vocabulary_of


def personalize(
    model: str | os.PathLike[str] | SpeechModel,
    clips: Sequence[Any],
    *,
    budget_mb: float,
    allocation: str = "knapsack",
    rounding: str = "compensated",
    moments: str = "blend",
    own_weight: float = 0.5,
    losses: str = "public",
    calibration: str = "dynamic",
    sensitivity: str = "median",
    order: str = "descending",
    weights: str = "group_128",
    zero_points: bool = True,
    activation_bits: int | Literal["auto"] = 8,
    bit_depths: Sequence[int] | None = None,
    format: str = OWN,
    language: str | None = None,
    public_clips: Sequence[Any] | None = None,
    window_s: float | None = None,
    keep: Sequence[str] = (),
    vocabulary: int | None = None,
    own_tokens: int = DEFAULT_OWN,
    words_from: str | None = None,
    seed: int = 0,
    device: str = AUTO_DEVICE,
) -> PersonalizedModel:
    """Compress a speech model for one user and one memory budget.

    The defaults lose least. The paper chooses (myQASR, Algorithm 1) `allocation="myqasr",
    rounding="nearest", weights="per_tensor", zero_points=False, calibration="cosine"`.

    Args:
        model: hub id or folder of a pretrained model, or one from `load_model`.
        clips: the user's clips, 10 to 100 of them; no transcript is needed. Each is a 1-D array or
            tensor at 16 kHz, (samples, rate), a path, a `datasets` dict with "array" and
            "sampling_rate", or a decoder of torchcodec; other rates are resampled.
        budget_mb: maximum size of the model file with everything in it, in MB (2^20 bytes).
        allocation: how layers get bits: knapsack, knapsack_pairs, myqasr, uniform, shuffled,
            reversed, linear.
        rounding: how weights get their codes: compensated, scaled, nearest (the paper).
        moments: whose clips compensated rounding fits: blend, own, public.
        own_weight: weight of the user's own clips in a blend, above 0 and below 1.
        losses: whose clips show what each bit depth costs, for knapsack: public, own.
        calibration: how inputs of layers are quantized: dynamic (each vector over its own range),
            cosine, minmax, hessian, none (one static range each), float (not at all).
        sensitivity: what ranks the layers for the allocators that read one value per layer: median,
            mean, max, abs-max, std, var, normality, l1, l2, frobenius, spectral, kl.
        order: which layers lose bits first, descending (largest sensitivity) or ascending.
        weights: what shares a scale: group_128, group_64, group_32 (inputs of a channel),
            per_channel, per_tensor (the paper).
        zero_points: whether weights have zero points beside their scales.
        activation_bits: bit depth of activations, 4 to 16, or "auto": 8, and 16 for the inputs that
            lose most at 8.
        bit_depths: bit depths that the device's runtime supports; None for all of the format.
        format: what the budget is for: "fedsim", the model file, or "onnx" or "openvino", all
            files of `export`, which then fit exactly; needs the extra of that name.
        language: language of the clips for a multilingual model; None lets the model detect it.
        public_clips: clips of nobody in particular, as `clips`; None for 128 synthetic voices in
            the same language, which need the extra fedsim-speech[voices]. They are read by moments
            blend and public, by losses public and, for static ranges, by activation_bits auto.
        window_s: seconds of audio that Whisper's encoder takes (default 30); for a model from
            `load_model`, give this and `keep` to `load_model`.
        keep: names or patterns of layers that stay in half precision.
        vocabulary: how many of the most frequent words of `language` a model with a token embedding
            (Whisper) can write; None for its whole vocabulary. Needs fedsim-speech[vocabulary].
        own_tokens: rows of the embedding for further tokens, of the model's own transcripts of the
            clips first, where `vocabulary` is given.
        words_from: a text in the language whose words are counted, in place of that package.
        seed: seeds the `shuffled` allocation.
        device: where it is computed: auto (a GPU if there is one), cpu, cuda, cuda:N or mps. A
            model from `load_model` stays where it is: give it to `load_model`.

    Raises:
        BudgetError: the budget is below the smallest feasible file, whose size the text names.
        AudioError: a clip is empty, not finite, not 1-D or too short.
        FedsimError: an unknown name, a model that cannot be loaded, a device that is not there, or
            an option out of range.
    """
    checked = checked_clips(clips)
    depths = check_options(budget_mb, activation_bits, bit_depths, format)
    for family, choice in (
        (GRANULARITIES, weights),
        (ALLOCATORS, allocation),
        (CALIBRATORS, calibration),
        (MEASURES, sensitivity),
        (ROUNDINGS, rounding),
    ):
        family[choice]  # raises for an unknown name before any work is done
    check_words(
        {"moments": (moments, ("public", "own", "blend")), "losses": (losses, ("public", "own"))}
    )
    check_share("own_weight", own_weight)
    if isinstance(model, str | os.PathLike):
        speech = load_model(model, window_s=window_s, keep=keep, device=device)
    elif window_s is not None or keep or device != AUTO_DEVICE:
        raise FedsimError(
            "window_s, keep and device are options of load_model for a loaded model: give them"
            " there"
        )
    else:
        speech = model
    with deterministic(str(device_of(speech))):
        ready = packable(
            speech,
            speech.id,
            weight_format=WeightFormat(weights, zero_points),
            depths=depths,
            settings=speech.settings,
            format=format,
        )
        threads = torch.get_num_threads()
        public = PublicModel(speech, lambda: _public_set(public_clips, language), threads)
        reads = ALLOCATORS[allocation].reads
        senses = reads in ("order", "vector")
        fits = ROUNDINGS[rounding].reads_moments
        tuning = tuning_pass(speech, checked, language)
        if vocabulary is not None:
            chosen = vocabulary_of(speech, vocabulary, own_tokens, words_from)
            ready = ready.trimmed(chosen.own_rows(language, tuning.tokens or ()))
        profile = None
        if reads in ("table", "pairs"):  # first, beside no moments of the user's clips
            profile = (
                own_losses(tuning, rounding, ready.weight_format, depths)
                if losses == "own"
                else public.losses(rounding, ready.weight_format, depths, pairs=reads == "pairs")
            )
        calibrator, records = CALIBRATORS[calibration], fits and moments != "public"
        passed: Passed = Passed(None)
        if senses or records or calibrator.user_data:
            passed = tuning.sense(
                (lambda network, batches: sense(network, batches, sensitivity))
                if senses
                else forward_only,
                [calibration],
                moments=records,
            )
        if senses:
            profile = profile_of(passed.found, sensitivity)
        budget, rng = int(budget_mb * MB), np.random.default_rng(seed)
        bits = allocate(allocation, profile, ready.sizes, budget, order=order, rng=rng)
        used: Mapping[str, SecondMoments] = {}
        if fits:
            used = mixed(moments, partial(_moments, passed), lambda: public.moments, own_weight)
        full, layers = ready.switch.full_weights(), speech.layers
        packed = round_plan(full, layers, bits, rounding, ready.weight_format, used, ready.rows)
        bare = without_moments(layers, rounding, used)
        observed = passed.observed
        del passed, used  # moments of a large model take more memory than its weights
        if not calibrator.static:
            observed = None
        elif not calibrator.user_data:
            observed = (
                tuning_pass(speech, public_signal(), language).observe([calibration]).observed
            )
        elif observed is None:
            observed = tuning.observe([calibration]).observed
        input_bits = public.input_bits(activation_bits, calibration)
        with torch.inference_mode():
            inputs = tuple(
                calibrate_layer(
                    calibration,
                    layer,
                    ready.modules[layer.name],
                    (observed or {}).get(layer.name),
                    partial(_unpacked, weight, device_of(speech)),
                    width,
                    ready.rows,
                )
                for layer, weight, width in zip(layers, packed, input_bits, strict=True)
            )
        file = ModelFile(ready.manifest(bits, language), packed, inputs, ready.stored, ready.rows)
        own = own_sizes(speech, ready.stored, ready.blank, depths, ready.rows)
        return PersonalizedModel(speech, file, own.total(bits), language, bare)


def _moments(passed: Passed) -> Mapping[str, SecondMoments]:
    return passed.moments or {}


def _unpacked(packed: PackedWeight, device: torch.device) -> torch.Tensor:
    return dequantize_weight(packed).to(device)


def _public_set(clips: Sequence[Any] | None, language: str | None) -> PublicSet:
    if clips is None:
        return public_set(public_request((language or "en",)))
    return public_set_of(PublicClip(clip, language) for clip in checked_clips(clips))
