"""wav2vec 2.0 and Conformer: padding never changes a result, and the decoders do what books say."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys

from fedsim.quant.measures import MEASURES
from fedsim.quant.model import Batch
from fedsim.quant.observe import observe
from fedsim.quant.sensitivity import sense
from fedsim.speech.models.base import Hypothesis, own_tokens, transcribe_clips, tuning_batches

CTC = ["ctc-group", "ctc-layer", "conformer"]
CLASSIFIERS = ["classifier", "classifier-layer"]
MASKED = ["ctc-layer", "classifier-layer"]
ALL = [*CTC, *CLASSIFIERS]
LENGTHS = [0.31, 0.5, 0.5, 0.1, 0.77, 0.5004, 0.2, 0.31, 1.2]
CLIPS = toys.clips(LENGTHS)


def single(model):
    """The same model one clip at a time: nothing is padded."""
    return replace(model, batch_size=1, grain=1)


@pytest.mark.parametrize("name", ALL)
def test_batches_equal_single_clips(speech, name):
    model = speech(name)
    together = transcribe_clips(model, CLIPS)
    assert together == transcribe_clips(single(model), CLIPS)
    assert together == transcribe_clips(replace(model, batch_size=1), CLIPS)  # padded, some of them
    assert all(together)
    assert len(set(together)) > (2 if name in CLASSIFIERS else 5)
    alone = [b for b, _ in single(model).batches(CLIPS)]
    places = [i for _, (i,) in single(model).batches(CLIPS)]
    logits = {i: model.forward(b)[0] for i, b in zip(places, alone, strict=True)}
    for batch, group in model.batches(CLIPS):
        answers = model.forward(batch)
        for i, answer in zip(group, answers, strict=True):
            if name in CTC:
                answer = answer[: len(logits[i])]
            torch.testing.assert_close(answer, logits[i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_padding_is_only_where_it_is_masked(speech, name):
    batches = list(speech(name).batches(CLIPS))
    assert sorted(i for _, places in batches for i in places) == list(range(len(CLIPS)))
    for batch, places in batches:
        lengths = [len(CLIPS[i]) for i in places]
        values = batch.inputs["input_values"]
        if name in MASKED:  # to a whole number of tenths of a second
            length = next(n for n in range(1600, 32_000, 1600) if n >= max(lengths))
        else:
            (length,) = set(lengths)
        assert values.shape == (len(places), length)
        if set(lengths) != {length}:
            assert batch.inputs["attention_mask"].sum(1).tolist() == lengths
        else:
            assert "attention_mask" not in batch.inputs
    if name in MASKED:
        assert len(batches) == 3  # 9 clips in fours
    else:
        assert len(batches) == 7  # as many as there are lengths


def test_clips_are_normalised_without_their_padding(speech):
    (batch, places), *_ = speech("ctc-layer").batches(CLIPS[:4])
    for row, i in zip(batch.inputs["input_values"], places, strict=True):
        n = len(CLIPS[i])
        expected = (CLIPS[i] - CLIPS[i].mean()) / np.sqrt(CLIPS[i].var() + 1e-7)
        np.testing.assert_allclose(row[:n], expected, atol=1e-4)
        assert float(row[n:].abs().sum()) == 0


@pytest.mark.parametrize("name", ALL)
def test_loudness_does_not_matter(speech, name):
    model = speech(name)
    loud = [3 * clip for clip in CLIPS]
    assert transcribe_clips(model, loud) == transcribe_clips(model, CLIPS)


def hooked(model, batch) -> dict[str, tuple[torch.Size, torch.Size]]:
    """Layer -> shapes of input and output in one forward pass."""
    seen = {}
    modules = dict(model.module.named_modules())

    def hook(name):
        return lambda _, args, out: seen.__setitem__(name, (args[0].shape, out.shape))

    handles = [modules[a.name].register_forward_hook(hook(a.name)) for a in model.layers]
    model.forward(batch)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", MASKED)
def test_frames_are_those_of_single_clips(speech, name):
    """What a padded batch says of each layer's frames against what the layer sees of one clip."""
    model = speech(name)
    kinds = {layer.name: layer.kind for layer in model.layers}
    alone = {places[0]: hooked(model, b) for b, places in single(model).batches(CLIPS)}
    padded = [(b, places) for b, places in model.batches(CLIPS) if "attention_mask" in b.inputs]
    assert len(padded) >= 2
    for batch, places in padded:
        assert set(batch.frames_in) == set(batch.frames_out) == set(kinds) - {"classifier"}
        for layer, row in itertools.product(batch.frames_in, range(len(places))):
            axis = 2 if kinds[layer] == "conv1d" else 1
            into, out = (shape[axis] for shape in alone[places[row]][layer])
            if layer.endswith("pos_conv_embed.conv"):
                out -= 1  # an even kernel's extra frame is cut off behind the layer
            assert int(batch.frames_in[layer][row]) == into
            assert int(batch.frames_out[layer][row]) == out


def by_clip(model):
    """The layers that answer each clip: relative positions are computed once a batch."""
    return [not layer.name.endswith("linear_pos") for layer in model.layers]


@pytest.mark.parametrize("name", ALL)
def test_sensitivities_of_padded_batches_are_those_of_single_clips(speech, name):
    model, clips = speech(name), CLIPS[:5]
    for measure in MEASURES:
        together = sense(model, tuning_batches(model, clips, None), measure)
        alone = sense(model, tuning_batches(single(model), clips, None), measure)
        np.testing.assert_allclose(together[by_clip(model)], alone[by_clip(model)], rtol=1e-4)
        # Batches have more or fewer relative positions than clips; these see all of them.
        rtol = {"normality": 0.1, "kl": 0.2}.get(measure, 0.02)
        np.testing.assert_allclose(together, alone, rtol=rtol)


@pytest.mark.parametrize("name", ALL)
def test_what_calibration_sees_of_padded_batches_is_what_it_sees_of_single_clips(speech, name):
    model = speech(name)
    clips = CLIPS[:4]
    both = [
        observe(m, tuning_batches(m, clips, None), fisher=True, capacity=100_000)
        for m in (model, single(model))
    ]
    assert list(both[0]) == [layer.name for layer in model.layers]
    for layer, together in itertools.compress(both[0].items(), by_clip(model)):
        alone = both[1][layer]
        assert together.low == pytest.approx(alone.low, rel=1e-4, abs=1e-5)
        assert together.high == pytest.approx(alone.high, rel=1e-4, abs=1e-5)
        assert together.rows.shape == alone.rows.shape, layer
        torch.testing.assert_close(together.rows, alone.rows, atol=1e-4, rtol=1e-3)
        assert float(together.fisher.sum()) > 0, layer
        torch.testing.assert_close(together.fisher, alone.fisher, atol=1e-4, rtol=1e-2)


def collapse(ids, blank=0):
    """Greedy CTC, as a book has it: merge repeats, then drop blanks."""
    return [int(i) for i, _ in itertools.groupby(ids) if i != blank]


@pytest.mark.parametrize("name", CTC)
def test_greedy_transcripts(speech, name):
    model = speech(name)
    for batch, places in single(model).batches(CLIPS):
        ids = model.forward(batch)[0].argmax(-1).tolist()
        letters = "".join(toys.LETTERS[i] for i in collapse(ids)).replace("|", " ").strip()
        assert letters
        assert [h.text for h in model.transcribe(batch)] == [letters]
        assert transcribe_clips(model, [CLIPS[places[0]]]) == [letters]


class Scripted(torch.nn.Module):
    """A network whose logits are given: one best label a frame."""

    def __init__(self, module, paths):
        super().__init__()
        self.config = module.config
        self.logits = F.one_hot(torch.tensor(paths), len(toys.LETTERS)).float() * 9
        self._get_feat_extract_output_lengths = None

    def forward(self, **_):
        return self


def test_greedy_paths(speech):
    for path, text in (
        ([5, 5, 5, 0, 0, 5, 6], "aab"),
        ([0, 0, 0, 0, 0, 0, 0], ""),
        ([5, 0, 5, 5, 0, 0, 5], "aaa"),
        ([4, 5, 6, 4, 4, 7, 4], "ab c"),
        ([5, 4, 0, 4, 6, 6, 6], "a  b"),
    ):
        model = speech("ctc-layer")
        network = replace(model, module=Scripted(model.module, [path]))
        clip = toys.clip((320 * 7 + 100) / 16_000)  # seven frames
        ((batch, _),) = network.batches([clip])
        heard = network.transcribe(batch)[0].text
        assert heard.split() == text.split()
        assert network._collapse(torch.tensor(path), 7).tolist() == collapse(path)


def test_labels_after_the_end_of_a_clip_are_not_heard(speech):
    """Frames of padding are cut before repeats merge: they may say anything."""
    model = speech("ctc-layer")
    network = replace(model, module=Scripted(model.module, [[5, 6, 0, 9, 9, 9, 9], [5] * 7]))
    clips = [toys.clip((320 * n + 100) / 16_000) for n in (3, 7)]
    ((batch, places),) = network.batches(clips)
    assert places == [0, 1]
    assert network.transcribe(batch) == [Hypothesis("ab"), Hypothesis("a")]


def ctc_loss(logits, labels, blank=0) -> float:
    """-log p(labels | logits) by the forward algorithm, in float64."""
    log_p = F.log_softmax(logits.double(), -1).numpy()
    states = [blank, *itertools.chain.from_iterable((label, blank) for label in labels)]
    alpha = np.full(len(states), -np.inf)
    alpha[:2] = log_p[0, states[:2]]
    for t in range(1, len(log_p)):
        before = alpha.copy()
        for s, label in enumerate(states):
            ways = [before[s], before[s - 1] if s else -np.inf]
            if s > 1 and label not in (blank, states[s - 2]):
                ways.append(before[s - 2])
            alpha[s] = np.logaddexp.reduce(ways) + log_p[t, label]
    return -np.logaddexp.reduce(alpha[-2:])


@pytest.mark.parametrize("name", CTC)
def test_ctc_loss(speech, name):
    """Of a batch: the sum over its clips of the loss by hand, each against its own transcript."""
    model = speech(name)
    by_hand, by_torch = 0.0, 0.0
    for batch, _ in single(model).batches(CLIPS):
        logits = model.forward(batch)
        labels = collapse(logits[0].argmax(-1).tolist())
        assert labels
        loss = float(model.loss(batch, logits))
        assert loss == pytest.approx(ctc_loss(logits[0], labels), rel=1e-4)
        frames = len(logits[0])
        by_torch += float(
            F.ctc_loss(
                F.log_softmax(logits, -1).transpose(0, 1),
                torch.tensor([labels]),
                torch.tensor([frames]),
                torch.tensor([len(labels)]),
                reduction="sum",
            )
        )
        by_hand += loss
    together = sum(float(model.loss(b, model.forward(b))) for b, _ in model.batches(CLIPS))
    assert together == pytest.approx(by_hand, rel=1e-4)
    assert together == pytest.approx(by_torch, rel=1e-4)


def test_the_loss_of_silence_is_finite(speech):
    """A clip in which nothing is heard has an empty transcript, and a gradient."""
    model = speech("ctc-layer")
    network = replace(model, module=Scripted(model.module, [[0] * 7]))
    ((batch, _),) = network.batches([toys.clip((320 * 7 + 100) / 16_000)])
    logits = network.module.logits.clone().requires_grad_()
    loss = network.loss(batch, logits)
    loss.backward()
    expected = ctc_loss(logits.detach()[0], [])
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert bool(torch.isfinite(logits.grad).all())
    assert float(logits.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classes(speech, name):
    model = speech(name)
    total = 0.0
    for batch, places in model.batches(CLIPS):
        logits = model.forward(batch)
        assert logits.shape == (len(places), len(toys.CLASSES))
        best = logits.argmax(-1)
        assert model.transcribe(batch) == [Hypothesis(toys.CLASSES[i]) for i in best]
        by_hand = sum(
            float(torch.logsumexp(row, 0) - row.max()) for row in logits
        )  # cross-entropy against the likeliest class
        loss = float(model.loss(batch, logits))
        assert loss == pytest.approx(by_hand, rel=1e-5)
        total += loss
    alone = [float(model.loss(b, model.forward(b))) for b, _ in single(model).batches(CLIPS)]
    assert sum(alone) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_a_forward_pass_needs_audio_alone(speech, name):
    model = speech(name)
    assert own_tokens(model, CLIPS) is None
    ((batch, _),) = single(model).batches(CLIPS[:1])
    assert model.with_tokens(batch, []) is batch
    assert isinstance(batch, Batch)
    assert batch.targets is None


def test_a_conformer_has_no_dead_layer(speech):
    """transformers makes a positional convolution that a Conformer never calls."""
    for name in ("conformer", "classifier"):
        model = speech(name)
        seen = hooked(model, next(iter(model.batches(CLIPS)))[0])
        assert set(seen) == {layer.name for layer in model.layers}
        assert not any("pos_conv" in key for key in model.module.state_dict())


def test_weight_normalisation_is_folded(speech):
    model = speech("ctc-group")
    original = toys.wav2vec2("group")
    conv = original.wav2vec2.encoder.pos_conv_embed.conv
    loaded = model.module.wav2vec2.encoder.pos_conv_embed.conv
    torch.testing.assert_close(loaded.weight, conv.weight.detach(), atol=1e-6, rtol=1e-6)
    assert not hasattr(loaded, "parametrizations")
