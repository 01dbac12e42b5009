"""The method as a library call: a budget kept to the byte, files that load equal, mistakes."""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import paper
import pytest
import toys

import fedsim
from fedsim import load_model, load_personalized, personalize
from fedsim.base.units import MB
from fedsim.errors import AudioError, BudgetError, FedsimError, ModelFileError
from fedsim.quant import modelfile
from fedsim.quant.activations import InputFormat
from fedsim.quant.allocation import ALLOCATORS
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.quant.granularities import GRANULARITIES
from fedsim.quant.measures import MEASURES
from fedsim.quant.sensitivity import sense
from fedsim.speech.models.base import public_signal, transcribe_clips, tuning_batches

CLIPS = toys.clips([0.3, 0.5, 0.44, 0.6])
OTHERS = toys.clips([0.4, 0.31, 0.52], seed=1)
STRANGERS = toys.clips([0.5, 0.35, 0.62, 0.41], seed=2)
"""Public clips: nobody waits for synthetic voices."""
PAPER = paper.OPTIONS
BUDGET = {"whisper": 0.075, "whisper-english": 0.075, "conformer": 0.05, "classifier": 0.05}


def budget_of(name):
    return BUDGET.get(name, 0.0334)


@pytest.fixture
def made(speech):
    """Return a function that personalizes a toy, quickly: as the paper does."""

    def make(name="ctc-group", clips=CLIPS, **options):
        options = {"budget_mb": budget_of(name), **PAPER, "calibration": "minmax", **options}
        return personalize(speech(name), clips, **options)

    return make


@pytest.mark.parametrize("name", list(toys.MODELS))
def test_size_and_file(made, tmp_path, speech, name):
    """Below the budget, and exactly the size that was reported before anything was written."""
    language = "it" if name == "whisper" else None
    pm = made(name, language=language, calibration="cosine")
    path = tmp_path / "user.safetensors"
    assert pm.save(path) == os.path.getsize(path) == pm.nbytes
    assert 0.9 * budget_of(name) * MB < pm.nbytes <= budget_of(name) * MB
    layers = speech(name).layers
    assert list(pm.bits) == [layer.name for layer in layers]
    assert min(pm.bits.values()) >= 2
    assert max(pm.bits.values()) <= 16
    assert max(pm.bits.values()) - min(pm.bits.values()) <= 1
    weights = [layer.n_weights for layer in layers]
    assert pm.mean_bits == pytest.approx(np.average(list(pm.bits.values()), weights=weights))
    assert set(pm.inputs) == {layer.name for layer in layers}
    # A table of embeddings looks rows up, and has no input to quantize.
    quantized = {layer.name: layer.kind != "embedding" for layer in layers}
    assert {n: i.bits for n, i in pm.inputs.items()} == {n: 8 * q for n, q in quantized.items()}
    assert {n: i.range is not None for n, i in pm.inputs.items()} == quantized
    assert all(i.range.low <= 0 <= i.range.high for i in pm.inputs.values() if i.range)
    assert [p.name for p in tmp_path.iterdir()] == ["user.safetensors"]


@pytest.mark.parametrize("name", list(toys.MODELS))
def test_a_file_comes_back_the_same(made, tmp_path, speech, model_folder, name):
    """Into the loaded model and, by the folder that the file names, into a fresh one."""
    language = "it" if name == "whisper" else None
    pm = made(name, language=language)
    heard = pm.transcribe(OTHERS)
    assert all(heard)
    full = transcribe_clips(speech(name), OTHERS, language)
    if "classifier" not in name:
        assert heard != full  # quantization did something
    pm.save(tmp_path / "user.safetensors")
    for model in (speech(name), None, model_folder(name), str(model_folder(name))):
        loaded = load_personalized(tmp_path / "user.safetensors", model)
        assert loaded.transcribe(OTHERS) == heard
        assert (loaded.bits, loaded.inputs) == (pm.bits, pm.inputs)
        assert (loaded.nbytes, loaded.mean_bits) == (pm.nbytes, pm.mean_bits)
        assert loaded.language == language
    loaded.save(tmp_path / "again.safetensors")
    first, again = ((tmp_path / f"{n}.safetensors").read_bytes() for n in ("user", "again"))
    assert first == again


def test_another_language_on_loading(made, tmp_path):
    pm = made("whisper", language="it")
    pm.save(tmp_path / "user.safetensors")
    loaded = load_personalized(tmp_path / "user.safetensors", language="en")
    assert loaded.language == "en"
    assert loaded.transcribe(OTHERS) != pm.transcribe(OTHERS)


@pytest.mark.parametrize("name", ["ctc-group", "whisper"])
def test_models_that_share_a_network_do_not_disturb_each_other(made, speech, name):
    network = speech(name)
    language = "it" if name == "whisper" else None
    full = transcribe_clips(network, OTHERS, language)
    one = made(name, language=language)
    small = 0.8 * budget_of(name)
    two = made(name, OTHERS, budget_mb=small, weights="per_tensor", language=language)
    first, second = one.transcribe(OTHERS), two.transcribe(OTHERS)
    assert len({tuple(first), tuple(second), tuple(full)}) == 3
    for _ in range(2):
        assert one.transcribe(OTHERS) == first
        assert transcribe_clips(network, OTHERS, language) == full  # full precision is put back
        assert two.transcribe(OTHERS) == second


def test_full_precision_is_put_back_after_an_error(made, speech):
    network = speech("ctc-group")
    full = transcribe_clips(network, OTHERS)
    before = {k: v.clone() for k, v in network.module.state_dict().items()}
    pm = made()

    def broken(*_):
        raise RuntimeError("a defect")

    hook = network.module.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="a defect"):
        pm.transcribe(OTHERS)
    hook.remove()
    assert transcribe_clips(network, OTHERS) == full
    for key, tensor in network.module.state_dict().items():
        np.testing.assert_array_equal(tensor, before[key])
    assert not any(m._forward_pre_hooks for m in network.module.modules())
    assert not any(m._forward_hooks for m in network.module.modules())


def test_the_same_again(made):
    one, two = made(calibration="cosine"), made(calibration="cosine")
    assert (one.bits, one.inputs, one.nbytes) == (two.bits, two.inputs, two.nbytes)
    assert one.transcribe(OTHERS) == two.transcribe(OTHERS)


@pytest.mark.parametrize("allocation", list(ALLOCATORS))
def test_every_allocation(made, allocation):
    """Those that read losses look at them on public clips, at few depths to be quick."""
    pm = made(allocation=allocation, public_clips=STRANGERS, bit_depths=(4, 6, 7, 8))
    assert pm.nbytes <= budget_of("ctc-group") * MB
    assert all(pm.transcribe(OTHERS))
    if allocation == "uniform":
        assert len(set(pm.bits.values())) == 1


@pytest.mark.parametrize("name", ["ctc-layer", "whisper"])
@pytest.mark.parametrize("calibration", list(CALIBRATORS))
def test_every_calibration(made, name, calibration):
    language = "it" if name == "whisper" else None
    pm = made(name, calibration=calibration, language=language)
    assert all(pm.transcribe(OTHERS))
    if not CALIBRATORS[calibration].static:
        kinds = {layer.name: layer.kind for layer in pm.model.layers}
        bits = 8 if calibration == "dynamic" else 0
        for layer, how in pm.inputs.items():
            assert how == InputFormat(bits if kinds[layer] == "linear" else 0)
        return
    assert any(i.range and i.range.high > 0 for i in pm.inputs.values())
    if calibration == "none":
        public = made(name, clips=public_signal(), calibration="minmax", language=language)
        assert pm.inputs == public.inputs
    else:
        assert pm.inputs != made(name, calibration="none", language=language).inputs


@pytest.mark.parametrize("sensitivity", list(MEASURES))
@pytest.mark.parametrize("order", ["descending", "ascending"])
def test_layers_give_up_bits_in_the_order_of_their_sensitivity(made, speech, sensitivity, order):
    model = speech("ctc-group")
    pm = made(sensitivity=sensitivity, order=order)
    values = sense(model, tuning_batches(model, CLIPS, None), sensitivity)
    bits = np.array(list(pm.bits.values()))
    assert set(bits) == {7, 8}
    fewer, more = values[bits == 7], values[bits == 8]
    if order == "descending":
        assert fewer.min() >= more.max()
    else:
        assert fewer.max() <= more.min()


def test_shuffles_are_seeded(made):
    plans = [tuple(made(allocation="shuffled", seed=s).bits.values()) for s in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


@pytest.mark.parametrize("weights", list(GRANULARITIES))
@pytest.mark.parametrize("activation_bits", [4, 8, 16])
def test_weights_and_activations(made, weights, activation_bits):
    pm = made(weights=weights, activation_bits=activation_bits)
    assert pm.nbytes <= budget_of("ctc-group") * MB
    assert {i.bits for i in pm.inputs.values()} == {activation_bits}
    assert all(text is not None for text in pm.transcribe(OTHERS))


def test_weights_with_zero_points(made, tmp_path):
    pm = made(zero_points=True, weights="group_32")
    assert pm.save(tmp_path / "user.safetensors") == pm.nbytes <= budget_of("ctc-group") * MB
    loaded = load_personalized(tmp_path / "user.safetensors")
    assert all(packed.zeros is not None for packed in loaded.file.weights)
    assert loaded.transcribe(OTHERS) == pm.transcribe(OTHERS)


DEPTHS = (3, 4, 6, 8)


def defaults(speech, **options):
    """Personalize a toy with the defaults, at few depths and with public clips given."""
    options = {"budget_mb": 0.025, "public_clips": STRANGERS, "bit_depths": DEPTHS, **options}
    return personalize(speech("ctc-group"), CLIPS, **options)


def codes(pm):
    return [packed.payload.tobytes() + packed.scales.tobytes() for packed in pm.file.weights]


def test_the_defaults(speech, tmp_path):
    """Knapsack on public losses, compensated rounding on both, and the same again."""
    pm, again = defaults(speech), defaults(speech)
    spelled = {"allocation": "knapsack", "rounding": "compensated", "moments": "blend"}
    same = defaults(speech, **spelled, own_weight=0.5, losses="public", calibration="dynamic")
    assert pm.bits == again.bits == same.bits
    assert codes(pm) == codes(again) == codes(same)
    assert pm.inputs == again.inputs == same.inputs
    assert pm.save(tmp_path / "user.safetensors") == pm.nbytes <= 0.025 * MB
    loaded = load_personalized(tmp_path / "user.safetensors")
    assert loaded.transcribe(OTHERS) == pm.transcribe(OTHERS) == same.transcribe(OTHERS)


def test_only_what_reads_public_clips_sees_them(speech):
    """Others give other bit depths, or other codes of weights."""
    twice = [{"public_clips": clips} for clips in (STRANGERS, toys.clips([0.9, 0.7], seed=5))]
    uniform = {"allocation": "uniform", "bit_depths": (4,)}
    alike = (
        {"losses": "own", "moments": "own"},
        {"losses": "own", "rounding": "scaled"},
        {**uniform, "moments": "own"},
        {**PAPER, "losses": "public", "moments": "public"},
    )
    for options in alike:
        one, two = (defaults(speech, **public, **options) for public in twice)
        assert (one.bits, codes(one)) == (two.bits, codes(two))
    for moments in ("public", "blend"):
        one, two = (defaults(speech, **public, **uniform, moments=moments) for public in twice)
        assert codes(one) != codes(two)


def test_own_clips_change_codes_only_where_they_are_read(speech):
    uniform = {"allocation": "uniform", "bit_depths": (4,), "calibration": "float"}

    def rounded(clips, **options):
        options = {**uniform, "budget_mb": 0.025, "public_clips": STRANGERS, **options}
        return codes(personalize(speech("ctc-group"), clips, **options))

    assert rounded(CLIPS, moments="public") == rounded(OTHERS, moments="public")
    for moments in ("own", "blend"):
        assert rounded(CLIPS, moments=moments) != rounded(OTHERS, moments=moments)
    nearly_own = rounded(CLIPS, own_weight=1 - 1e-9)
    assert nearly_own == rounded(CLIPS, moments="own")
    assert rounded(CLIPS, own_weight=0.9) != rounded(CLIPS, own_weight=0.1)


def test_activations_of_8_or_16_bits(speech):
    """Only static ranges get 16, for the inputs that lose most on public clips at 8."""
    pm = defaults(speech, activation_bits="auto", **PAPER)
    assert {i.bits for i in pm.inputs.values()} <= {8, 16}
    assert all(i.range is not None for i in pm.inputs.values())
    moving = defaults(speech, activation_bits="auto", **{**PAPER, "calibration": "dynamic"})
    assert {i.bits for i in moving.inputs.values()} == {0, 8}


def test_legal_depths(made):
    assert set(made(bit_depths=[4, 8, 2, 8], budget_mb=0.03).bits.values()) <= {2, 4, 8}
    assert set(made(bit_depths=(6,)).bits.values()) == {6}


@pytest.mark.parametrize("name", ["ctc-group", "whisper"])
def test_the_smallest_budget(made, tmp_path, name):
    """The sentence names a size; that size is enough, and one byte less is not."""
    with pytest.raises(BudgetError) as caught:
        made(name, budget_mb=0.001)
    least = int(re.search(r"model file of ([\d,]+) bytes", str(caught.value))[1].replace(",", ""))
    pm = made(name, budget_mb=least / MB)
    assert pm.save(tmp_path / "user.safetensors") == pm.nbytes == least
    assert set(pm.bits.values()) == {2}
    with pytest.raises(BudgetError, match=rf"{least - 1:,} bytes .+ {least:,} bytes"):
        made(name, budget_mb=(least - 1) / MB)


def test_a_budget_larger_than_all(made):
    pm = made(budget_mb=100)
    assert set(pm.bits.values()) == {16}


def test_from_a_folder(model_folder, speech):
    pm = personalize(str(model_folder("ctc-group")), CLIPS, budget_mb=0.0334, **PAPER)
    same = personalize(model_folder("ctc-group"), CLIPS, budget_mb=0.0334, **PAPER)
    assert pm.bits == same.bits
    assert pm.transcribe(OTHERS) == same.transcribe(OTHERS)
    assert fedsim.personalize is personalize


def test_kept_layers(model_folder, tmp_path):
    pm = personalize(model_folder("ctc-group"), CLIPS, budget_mb=0.04, keep=["lm_head"], **PAPER)
    assert "lm_head" not in pm.bits
    pm.save(tmp_path / "user.safetensors")
    loaded = load_personalized(tmp_path / "user.safetensors")
    assert loaded.bits == pm.bits
    assert loaded.transcribe(OTHERS) == pm.transcribe(OTHERS)


def test_a_window(model_folder, tmp_path):
    options = {"budget_mb": 0.075, "language": "it", **PAPER}
    pm = personalize(model_folder("whisper"), CLIPS, window_s=2, **options)
    pm.save(tmp_path / "user.safetensors")
    loaded = load_personalized(tmp_path / "user.safetensors")
    assert loaded.model.window == 2
    assert loaded.transcribe(OTHERS) == pm.transcribe(OTHERS)


@pytest.mark.parametrize("options", [{}, {"window_s": 2}, {"keep": ["*.conv*", "proj_out"]}])
def test_a_loaded_model_and_its_folder_give_the_same_file(model_folder, tmp_path, options):
    """Also one that was loaded with options: they are in the file, which then loads by itself."""
    settings = {"budget_mb": 0.1, "language": "it", **PAPER}
    personalize(model_folder("whisper"), CLIPS, **settings, **options).save(tmp_path / "folder")
    pm = personalize(load_model(model_folder("whisper"), **options), CLIPS, **settings)
    pm.save(tmp_path / "loaded")
    assert (tmp_path / "loaded").read_bytes() == (tmp_path / "folder").read_bytes()
    loaded = load_personalized(tmp_path / "loaded")
    assert loaded.bits == pm.bits
    assert loaded.transcribe(OTHERS) == pm.transcribe(OTHERS)


@pytest.mark.parametrize("options", [{"window_s": 2}, {"keep": ["model.encoder.conv1"]}])
def test_a_loaded_model_takes_no_loading_options(speech, options):
    """They would be left out without a word."""
    (key,) = options
    with pytest.raises(FedsimError, match=rf"{key}.* load_model .*give them there"):
        personalize(speech("whisper"), CLIPS, budget_mb=0.1, language="it", **options)


def test_a_file_for_another_window(model_folder, speech, tmp_path):
    options = {"budget_mb": 0.1, "language": "it", "window_s": 2, **PAPER}
    pm = personalize(model_folder("whisper"), CLIPS, **options)
    pm.save(tmp_path / "user.safetensors")
    with pytest.raises(ModelFileError, match=r"window_s 2.0 of .*give its id or folder instead"):
        load_personalized(tmp_path / "user.safetensors", speech("whisper"))


def test_the_wrong_model(made, speech, tmp_path):
    made().save(tmp_path / "user.safetensors")
    with pytest.raises(
        ModelFileError,
        match=r"user.safetensors .*ctc-group.* differ",
    ):
        load_personalized(tmp_path / "user.safetensors", speech("whisper"))


def test_a_model_that_has_gone(model_folder, tmp_path):
    folder = shutil.copytree(model_folder("ctc-group"), tmp_path / "model")
    pm = personalize(folder, CLIPS, budget_mb=0.0334, **PAPER)
    pm.save(tmp_path / "user.safetensors")
    shutil.rmtree(folder)
    with pytest.raises(FedsimError, match=r"\S+/model"):
        load_personalized(tmp_path / "user.safetensors")
    moved = load_personalized(tmp_path / "user.safetensors", model_folder("ctc-group"))
    assert moved.transcribe(OTHERS) == pm.transcribe(OTHERS)


def test_a_damaged_file(made, tmp_path):
    path = tmp_path / "user.safetensors"
    made().save(path)
    data = path.read_bytes()
    for place in (3, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ModelFileError, match=r"user.safetensors .*damaged"):
            load_personalized(path)
    path.write_bytes(data[:-1])
    with pytest.raises(ModelFileError, match=r"user.safetensors .*damaged"):
        load_personalized(path)
    with pytest.raises(ModelFileError, match=r"none.safetensors .*No such file"):
        load_personalized(tmp_path / "none.safetensors")


def test_saving_where_nothing_can_be_written(made, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FedsimError, match=r"user.safetensors .*cannot be written"):
        made().save(tmp_path / "file" / "user.safetensors")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"budget_mb": 0}, "budget_mb is 0: give a positive number of MB"),
        ({"budget_mb": -3}, "budget_mb is -3: give a positive"),
        ({"budget_mb": float("nan")}, "budget_mb is nan: give a positive"),
        ({"budget_mb": float("inf")}, "budget_mb is inf: give a positive"),
        ({"activation_bits": 3}, "activation_bits is 3: use 4 to 16"),
        (
            {"activation_bits": "automatic"},
            "activation_bits is 'automatic': use 4 to 16, or 'auto'",
        ),
        ({"rounding": "nearst"}, "no rounding 'nearst': did you mean 'nearest'"),
        ({"moments": "both"}, "moments is 'both': "),
        ({"losses": "publik"}, "losses is 'publik': did you mean 'public'"),
        ({"own_weight": 1}, "own_weight is 1: give a number above 0 and below 1"),
        ({"own_weight": 0}, "own_weight is 0: give a number above 0 and below 1"),
        ({"activation_bits": 17}, "activation_bits is 17: use 4 to 16"),
        ({"bit_depths": []}, r"bit_depths is \[\]: use whole depths of 2 to 16"),
        ({"bit_depths": [1, 4]}, r"bit_depths is \[1, 4\]: use whole depths"),
        ({"bit_depths": [4, 32]}, r"bit_depths is \[4, 32\]: use whole depths"),
        ({"bit_depths": [4.5]}, r"bit_depths is \[4.5\]: use "),
        ({"weights": "per_chanel"}, "no granularity 'per_chanel': did you mean 'per_channel'"),
        ({"allocation": "myqsar"}, "no allocation 'myqsar': did you mean 'myqasr'"),
        ({"calibration": "cosin"}, "no calibration 'cosin': did you mean 'cosine'"),
        ({"sensitivity": "meadian"}, "no sensitivity 'meadian': did you mean 'median'"),
        ({"order": "up"}, "order is 'up': use 'descending' or 'ascending'"),
        ({"model": "./nowhere"}, "model folder ./nowhere"),
        ({"language": "klingon", "model": "whisper"}, "'klingon'"),
    ],
)
def test_a_bad_option(speech, options, sentence):
    name = options.pop("model", "ctc-group")
    model = name if name.startswith(".") else speech(name)
    with pytest.raises(FedsimError, match=sentence) as caught:
        personalize(model, CLIPS, **{"budget_mb": 1, **PAPER, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "x"},
        {"allocation": "x"},
        {"calibration": "x"},
        {"sensitivity": "x"},
        {"rounding": "x"},
    ],
)
def test_a_bad_name_is_reported_before_any_work_is_done(options):
    """There is no such model, which nobody gets to notice."""
    with pytest.raises(FedsimError, match=r"there is no \w+ 'x': known: "):
        personalize("./nowhere", CLIPS, budget_mb=1, **options)


GOOD = toys.clip(0.5)


@pytest.mark.parametrize(
    ("clips", "error", "sentence"),
    [
        ([], FedsimError, "no clips were given; give at least one"),
        (GOOD, FedsimError, r"give a list of 1-D arrays, such as \[clip\]"),
        ([GOOD, GOOD[:0]], AudioError, "clip 1 is empty; leave it out"),
        ([GOOD, GOOD * np.nan], AudioError, "clip 1 holds 8000 samples that are NaN"),
        ([np.stack([GOOD, GOOD])], AudioError, r"clip 0 has shape \(2, 8000\); give one channel"),
        ([GOOD, GOOD[:100]], AudioError, "clip 1 lasts 0.00625 s; the shortest usable clip"),
        ([np.ones(3_200, bool)], AudioError, "clip 0 is a ndarray that holds no samples"),
    ],
)
def test_bad_clips(made, clips, error, sentence):
    with pytest.raises(error, match=sentence):
        made(clips=clips)
    with pytest.raises(error, match=sentence):
        made().transcribe(clips)


def test_clips_as_rows_of_an_array(made):
    rows = np.stack(toys.clips([0.5, 0.5, 0.5]))
    assert made(clips=rows).bits == made(clips=list(rows)).bits


def test_one_clip_is_enough(made):
    pm = made(clips=CLIPS[:1])
    assert len(pm.transcribe(CLIPS[:1])) == 1


def test_a_clip_longer_than_the_window(made):
    with pytest.raises(AudioError, match=r"a clip of 5 s .*window of 4"):
        made("whisper", clips=[toys.clip(5)], language="it")


def test_clips_are_left_alone(made):
    clips = [clip.copy() for clip in CLIPS]
    made(clips=clips).transcribe(clips)
    for clip, same in zip(clips, CLIPS, strict=True):
        np.testing.assert_array_equal(clip, same)


def test_the_manifest_of_a_file(made, tmp_path, model_folder):
    pm = made("whisper", language="italian", activation_bits=9, weights="per_tensor")
    pm.save(tmp_path / "user.safetensors")
    manifest = modelfile.read_manifest(tmp_path / "user.safetensors")
    assert manifest.model == str(model_folder("whisper"))
    assert manifest.bits == tuple(pm.bits.values())
    assert (manifest.granularity, manifest.zero_points) == ("per_tensor", False)
    kinds = {layer.name: layer.kind for layer in pm.model.layers}
    assert all(i.bits == (kinds[n] != "embedding") * 9 for n, i in pm.inputs.items())
    assert manifest.settings["language"] == "italian"
    assert "safetensors" in repr(pm) or "nbytes" in repr(pm)
    assert len(repr(pm)) < 200  # the network and the file are not printed


@pytest.mark.slow
def test_public_voices_may_speak_longer_than_a_window(model_folder):
    """The toy hears 4 s; some public clips last longer, and none of them is the user's mistake."""
    model = load_model(model_folder("whisper"))
    mine = fedsim.personalize(model, toys.clips((0.5,)), budget_mb=0.2, moments="public")
    assert mine.nbytes <= 0.2 * 2**20
