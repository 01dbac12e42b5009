"""Loading models: families, what a folder must contain, and an error for each mistake."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
import transformers
from entries import added
from safetensors.torch import load_file, save_file

from fedsim import load_model, wrap_model
from fedsim.errors import FedsimError
from fedsim.quant.switch import switch_of
from fedsim.speech.families import FAMILIES, ModelFamily
from fedsim.speech.models import encoder
from fedsim.speech.models.base import transcribe_clips

CLIPS = toys.clips([0.3, 0.5, 0.4])


@pytest.fixture
def copy(model_folder, tmp_path):
    """Return a function that copies a toy's folder, to be spoiled."""

    def copy_(name):
        return shutil.copytree(model_folder(name), tmp_path / name)

    return copy_


def edit(path, **changes):
    """Change or (None) remove keys of a JSON file."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@pytest.mark.parametrize("name", list(toys.MODELS))
def test_a_folder(model_folder, name):
    model = load_model(model_folder(name))
    assert model.id == str(model_folder(name))
    assert model.task == ("classify" if "classifier" in name else "transcribe")
    assert not model.module.training
    names = [layer.name for layer in model.layers]
    assert len(set(names)) == len(names) > 10
    modules = dict(model.module.named_modules())
    for layer in model.layers:
        assert tuple(modules[layer.name].weight.shape) == layer.shape
    for tensor in model.module.state_dict().values():
        assert tensor.dtype in (torch.float32, torch.int64)
        assert not tensor.requires_grad
    assert all(not p.requires_grad for p in model.module.parameters())
    assert len(set(transcribe_clips(model, CLIPS))) > 1
    assert all(transcribe_clips(model, CLIPS))


@pytest.mark.parametrize("name", list(toys.MODELS))
def test_loaded_weights_are_those_of_the_network(model_folder, name):
    """Also of the weight-normalised convolution, whose two factors become one weight."""
    original = toys.MODELS[name]()
    model = load_model(model_folder(name))
    (batch, _) = next(iter(model.batches(CLIPS[:1], "en")))
    if "whisper" in name:
        batch = model.with_tokens(batch, model.own_tokens(batch))
    with torch.no_grad():
        expected = original(**batch.inputs).logits
        torch.testing.assert_close(model.forward(batch), expected, atol=1e-4, rtol=1e-4)


def test_half_precision_checkpoints_are_loaded_in_float32(tmp_path):
    original = toys.wav2vec2("layer")
    weight = original.lm_head.weight.detach().clone()
    folder = toys.save(original, tmp_path / "half", half=True)
    stored = load_file(folder / "model.safetensors")
    assert stored["lm_head.weight"].dtype == torch.float16
    model = load_model(folder)
    loaded = switch_of(model).full_weights()["lm_head"]
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded, weight.half().float(), atol=0, rtol=0)


def test_a_tied_table_is_one_layer(speech):
    model = speech("whisper")
    tied = [layer for layer in model.layers if layer.aliases]
    assert [(layer.name, layer.aliases) for layer in tied] == [
        ("proj_out", ("model.decoder.embed_tokens",))
    ]
    names = {layer.name for layer in model.layers}
    assert "model.decoder.embed_tokens" not in names
    assert not any("embed_positions" in name for name in names)  # added, not multiplied with
    module = model.module
    assert module.proj_out.weight is module.model.decoder.embed_tokens.weight


def test_layers_that_are_kept(model_folder):
    every = {layer.name for layer in load_model(model_folder("ctc-group")).layers}
    kept = load_model(model_folder("ctc-group"), keep=["lm_head", "*.attention.?_proj"])
    gone = every - {layer.name for layer in kept.layers}
    assert gone == {
        n for n in every if n == "lm_head" or n.endswith(("q_proj", "k_proj", "v_proj"))
    }
    assert len(gone) == 7
    assert "lm_head.weight" in switch_of(kept).full_leftovers()
    with pytest.raises(FedsimError, match="'lm_haed': did you mean 'lm_head'"):
        load_model(model_folder("ctc-group"), keep=["lm_haed"])


def test_layers_of_whisper_that_are_kept(model_folder):
    """A tied weight is one: to keep the head is to keep the table."""
    model = load_model(model_folder("whisper"), keep=["proj_out", "model.decoder.embed_tokens"])
    assert not any(layer.n_weights == 268 * 32 for layer in model.layers)


def test_batches_are_no_larger_than_asked(model_folder):
    clips = toys.clips([0.5, 0.3, 0.4, 0.6, 0.2])
    for size in (1, 2, 3):
        model = load_model(model_folder("ctc-layer"), batch_size=size)
        batches = [(len(b.inputs["input_values"]), places) for b, places in model.batches(clips)]
        assert [n for n, _ in batches] == [len(places) for _, places in batches]
        assert max(n for n, _ in batches) == size
        assert [i for _, places in batches for i in places] == [4, 1, 2, 0, 3]  # by length


def test_no_such_model(tmp_path):
    for missing in (tmp_path / "nowhere", "./nowhere"):
        with pytest.raises(FedsimError, match=rf"{re.escape(str(missing))}; check model.id"):
            load_model(missing)
    with pytest.raises(FedsimError, match=r"'org/none' .*; check the id and the network") as caught:
        load_model("org/none")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_config(copy):
    folder = copy("ctc-group")
    (folder / "config.json").unlink()
    with pytest.raises(FedsimError, match=r"no config.json; give a folder in the transformers"):
        load_model(folder)


def test_a_damaged_config(copy):
    folder = copy("ctc-group")
    for text in ("{", "", "[]", '{"model_type": "no-such-model"}', "{}"):
        (folder / "config.json").write_text(text)
        with pytest.raises(FedsimError, match=r"config\.json .*; fetch it again") as caught:
            load_model(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"architectures": ["Wav2Vec2FroCTC"]},
            r"is a Wav2Vec2FroCTC, which is not a class .*; did you mean 'Wav2Vec2ForCTC'\? Corr",
        ),
        (
            {"architectures": ["Wav2Vec2ForXVector"]},
            r"is a Wav2Vec2ForXVector, for which fedsim has no family; of these models fedsim runs "
            r"Wav2Vec2ForCTC and Wav2Vec2ForSequenceClassification; choose .* \(data2vec-audio",
        ),
        (
            {"architectures": ["LasrForCTC"]},
            r"is a LasrForCTC, for which fedsim has no family; choose a model of a family that it "
            r"has \(data2vec.*, whisper.*\), or add one by a plug-in: an adapter .*docs/models.md",
        ),
        ({"add_adapter": True}, r"lacks \d+ of the weights"),
    ],
)
def test_an_unknown_architecture(copy, changes, sentence):
    folder = copy("ctc-group")
    edit(folder / "config.json", **changes)
    with pytest.raises(FedsimError, match=rf"model '{folder}' .*({sentence})"):
        load_model(folder)


@pytest.mark.parametrize("architectures", [None, []])
def test_a_config_without_a_class(copy, architectures):
    folder = copy("ctc-group")
    content = json.loads((folder / "config.json").read_text()) | {"architectures": architectures}
    (folder / "config.json").write_text(json.dumps(content))
    text = r"config.json of model '\S+' names no class .*; add the one .* \[\"Wav2Vec2ForCTC\"\]"
    with pytest.raises(FedsimError, match=text):
        load_model(folder)


def test_missing_weights(copy):
    folder = copy("ctc-group")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FedsimError, match=r"the weights of model '\S+' cannot be read: .+; fetch"):
        load_model(folder)


def test_a_checkpoint_that_was_not_fine_tuned(copy):
    folder = copy("ctc-group")
    state = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in state.items() if not k.startswith("lm_head")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FedsimError, match=r"lacks 2 .*'lm_head.bias'\); choose a checkpoint"):
        load_model(folder)


def test_the_mask_embedding_may_be_missing(copy):
    folder = copy("ctc-group")
    state = load_file(folder / "model.safetensors")
    del state["wav2vec2.masked_spec_embed"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert all(transcribe_clips(load_model(folder), CLIPS))


@pytest.mark.parametrize("name", ["ctc-group", "whisper"])
def test_a_truncated_checkpoint(copy, name):
    path = copy(name) / "model.safetensors"
    data = path.read_bytes()
    for share in (0.0, 0.001, 0.5, 0.999):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(FedsimError, match=rf"weights .*'{path.parent}' .+; fetch it") as caught:
            load_model(path.parent)
        assert "\n" not in str(caught.value)


def test_weights_of_another_shape(copy):
    folder = copy("ctc-group")
    edit(folder / "config.json", hidden_size=48)
    with pytest.raises(FedsimError, match=r"the weights of model '\S+' cannot be read: "):
        load_model(folder)


def test_a_ctc_model_without_a_tokenizer(copy):
    folder = copy("ctc-group")
    for name in ("vocab.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(FedsimError, match=r"CTC head .* \(vocab.json, .*; add them"):
        load_model(folder)


def test_a_whisper_without_a_tokenizer(copy):
    folder = copy("whisper")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(FedsimError, match=rf"'{folder}' has no tokenizer files .*; add them"):
        load_model(folder)


def test_a_whisper_without_a_preprocessor(copy):
    folder = copy("whisper")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FedsimError, match=r"preprocessor_config.json: .*; add the file"):
        load_model(folder)


@pytest.mark.parametrize("name", ["ctc-group", "conformer", "classifier"])
def test_a_window_is_for_families_that_have_one(model_folder, name):
    with pytest.raises(FedsimError, match=r"model.window_s is 10, .*; remove window_s"):
        load_model(model_folder(name), window_s=10)


def test_a_window_out_of_range(model_folder):
    for window in (0, 0.99, 4.1, 30, -1, float("nan"), float("inf")):
        with pytest.raises(FedsimError, match=rf"model.window_s is {window:g}; use 1 to 4 sec"):
            load_model(model_folder("whisper"), window_s=window)


def test_a_window(model_folder):
    for window in (1, 1.5, 2.03, 3.999, 4):
        model = load_model(model_folder("whisper"), window_s=window)
        positions = round(window * 50)
        assert model.window == positions / 50
        assert model.module.model.encoder.embed_positions.weight.shape == (positions, 32)
        ((batch, _),) = model.batches(CLIPS)
        assert batch.inputs["input_features"].shape == (3, 80, 2 * positions)
        assert all(transcribe_clips(model, CLIPS, "it"))


def test_the_full_window_changes_nothing(model_folder, speech):
    model = load_model(model_folder("whisper"), window_s=4)
    assert transcribe_clips(model, CLIPS, "it") == transcribe_clips(speech("whisper"), CLIPS, "it")


def test_a_shorter_window_leaves_the_folder_alone(model_folder):
    load_model(model_folder("whisper"), window_s=2)
    assert load_model(model_folder("whisper")).window == 4


def test_families():
    families = [FAMILIES[name] for name in FAMILIES]
    classes = [name for family in families for name in family.classes]
    assert len(set(classes)) == len(classes) >= 22
    assert all(isinstance(getattr(transformers, name), type) for name in classes)
    assert FAMILIES["whisper"].has_window
    assert not FAMILIES["wav2vec2"].has_window
    assert FAMILIES.describe().keys() == set(FAMILIES)


def test_families_are_listed_without_torch():
    code = "import sys; from fedsim.speech.families import FAMILIES; FAMILIES.describe(); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_family_of_another_package(tmp_path, monkeypatch):
    """All that is special about it is in its entry: classes, adapter, kept layers, defaults."""
    new = type("NewForCTC", (transformers.Wav2Vec2ForCTC,), {})
    # transformers puts another module in its own place while it is imported.
    monkeypatch.setattr(sys.modules["transformers"], "NewForCTC", new, raising=False)
    folder = toys.save(toys.wav2vec2(), tmp_path / "new")
    edit(folder / "config.json", architectures=["NewForCTC"])
    (folder / "preprocessor_config.json").unlink()
    state = load_file(folder / "model.safetensors")
    del state["wav2vec2.masked_spec_embed"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FedsimError, match="is a NewForCTC"):
        load_model(folder)
    prepared = []
    family = ModelFamily(
        encoder.raw,
        classes=("NewForCTC",),
        summary="A new one, whose layers are those of wav2vec 2.0.",
        keep=("lm_head", "*.of_a_variant"),
        default_extractor=encoder.default_extractor,
        prepare=prepared.append,
        optional_weights=("masked_spec_embed",),
    )
    with added(FAMILIES, "new", family):
        model = load_model(folder, batch_size=4, normalize=True)
        assert prepared == [model.module]
        names = {layer.name for layer in model.layers}
        assert any(name.startswith("wav2vec2.encoder") for name in names)
        assert "lm_head" not in names
        assert all(transcribe_clips(model, CLIPS))
        wrapped = wrap_model(model.module, model.extractor, model.tokenizer)
        assert transcribe_clips(wrapped, CLIPS) == transcribe_clips(model, CLIPS)
        with pytest.raises(FedsimError, match="remove window_s"):
            load_model(folder, window_s=2, normalize=True)
    for change, text in (
        ({"default_extractor": None}, r"takes no raw audio; remove it"),
        ({"optional_weights": ()}, r"'wav2vec2.masked_spec_embed'\); choose a checkpoint"),
    ):
        entry = replace(family, **change)
        with added(FAMILIES, "new", entry), pytest.raises(FedsimError, match=text):
            load_model(folder, normalize=True)


@pytest.mark.parametrize("name", list(toys.MODELS))
def test_a_network_in_memory(speech, name):
    loaded = speech(name)
    model = wrap_model(
        toys.MODELS[name](), loaded.extractor, loaded.tokenizer, name="mine", batch_size=4
    )
    assert model.id == "mine"
    assert model.layers == loaded.layers
    assert model.task == loaded.task
    assert transcribe_clips(model, CLIPS, "it") == transcribe_clips(loaded, CLIPS, "it")


def test_a_network_in_memory_that_cannot_be_run(speech):
    with pytest.raises(FedsimError, match=r"'in memory' is a Linear, .*; choose a model of a fam"):
        wrap_model(torch.nn.Linear(2, 2), None)
    extractor = speech("ctc-group").extractor
    with pytest.raises(FedsimError, match=r"'in memory' has a CTC head but no tokenizer"):
        wrap_model(toys.wav2vec2(), extractor)


def test_public_clips_are_public():
    """The signal that stands in for speech: seeded, at -23 dBFS, with the spectrum of speech."""
    from fedsim.speech.models.base import public_signal

    clips = public_signal()
    again = public_signal()
    assert [c.shape for c in clips] == [(32_000,)] * 4
    for clip, same in zip(clips, again, strict=True):
        assert clip.dtype == np.float32
        np.testing.assert_array_equal(clip, same)
        level = 20 * np.log10(np.sqrt(np.mean(clip.astype(np.float64) ** 2)))
        assert level == pytest.approx(-23, abs=0.1)
        power = np.abs(np.fft.rfft(clip)) ** 2
        frequency = np.fft.rfftfreq(32_000, 1 / 16_000)

        def band(low, high, power=power, frequency=frequency):
            return 10 * np.log10(power[(frequency >= low) & (frequency < high)].mean())

        assert band(1000, 1100) - band(2000, 2200) == pytest.approx(9, abs=2)
        assert band(100, 300) - band(300, 500) == pytest.approx(0, abs=2)
    assert not np.array_equal(clips[0], clips[1])
