"""`fedsim validate --deep`: what is reported of a model, its clients and clips before a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import hub_toys
import pytest
import soundfile
import toys
import transformers

from fedsim.cli import main
from fedsim.errors import FedsimError
from fedsim.quant.allocation import smallest
from fedsim.runner.preflight import preflight
from fedsim.scenario import load_scenario
from fedsim.speech.corpus import open_clients
from fedsim.study.model import load_study_model

PAPER = Path(__file__).parents[2] / "scenarios/paper"
BASE_960H = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "conv_dim": (512,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "num_feat_extract_layers": 7,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "classifier_proj_size": 256,
    "num_hidden_layers": 1,
}
"""The config of facebook/wav2vec2-base-960h, but for eleven of its twelve layers."""
CONFORMER_LARGE = {
    **BASE_960H,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "conv_bias": True,
    "conv_depthwise_kernel_size": 31,
    "position_embeddings_type": "relative",
    "id2label": dict(enumerate((*hub_toys.COMMANDS, hub_toys.SILENCE))),
}
"""The config of facebook/wav2vec2-conformer-rel-pos-large, but for 23 of its 24 layers."""


def lines(scenario):
    clients = open_clients(scenario.corpus, scenario.clients, scenario.seed)
    return list(preflight(scenario, clients))


@pytest.fixture
def scenario(tmp_path, model_folder):
    """Return a function that makes a scenario of a toy model on an AudioFolder of two speakers."""

    def make(model="ctc-group", overrides=(), **corpus):
        if not (tmp_path / "clips").exists():
            toys.write_corpus(tmp_path / "clips", ("ann", "bob"), each=5, **corpus)
        file = toys.write_scenario(
            tmp_path / "toy.yaml",
            model={"id": str(model_folder(model))},
            corpus={
                "path": "./clips",
                "group_by": "speaker",
                "tuning_clips": 2,
                "test_clips": 3,
            },
            clients={"budget_mb": [0.04, 0.05]},
        )
        return load_scenario(file, overrides)

    return make


def texts(text):
    """Give every clip of a corpus this text, see `toys.write_corpus`."""
    return lambda clips, language: [text] * len(clips)


def test_a_line_for_each_check(scenario, model_folder):
    chosen = scenario()
    found = lines(chosen)
    assert found[0].startswith(
        f"model: {model_folder('ctc-group')} is a Wav2Vec2ForCTC of 19 layers with "
    )
    assert found[0].endswith(" 0.1 MB in full precision")
    assert found[1].startswith(
        "size: the smallest budget, 0.04 MB (41,943 bytes) of client 'ann', "
    )
    assert found[2].startswith(
        "clips: client 'ann' has 2 tuning and 3 test clips, 16,000 Hz and one channel, 0.3 to 0."
    )
    heard = found.pop(5)
    assert found[3:] == [
        "texts: 6 references of 2 clients, none empty once normalized",
        "languages: the model takes none",
        "scores: WER, texts normalized by basic",
    ]
    samples, _ = soundfile.read(chosen.corpus.path + "/ann/0.wav", dtype="float32")
    recognizer = transformers.pipeline(
        "automatic-speech-recognition", str(model_folder("ctc-group"))
    )
    text = recognizer(samples)["text"]
    clip = "test clip ann/0.wav of client 'ann', 'seven right',"
    assert heard == f"recognition: {clip} is recognized as {text!r}"


def test_what_only_decoding_meets(scenario, model_folder, tmp_path):
    """A token to suppress that the model does not have."""
    folder = shutil.copytree(model_folder("whisper"), tmp_path / "model")
    config = json.loads((folder / "generation_config.json").read_text())
    config["suppress_tokens"] = [999_999]
    (folder / "generation_config.json").write_text(json.dumps(config))
    broken = scenario("whisper", [f"model.id={folder}", "clients.budget_mb=1"])
    words = r"model '.*' recognizes no clip \(IndexError: .*test clip ann/\d.wav of client 'ann'"
    with pytest.raises(FedsimError, match=words):
        lines(broken)


def test_the_command_prints_them(scenario, capsys, tmp_path):
    scenario()
    assert main(["validate", "--deep", str(tmp_path / "toy.yaml")]) == 0
    printed = capsys.readouterr().out.splitlines()
    heads = [line.split(":")[0] for line in printed[-8:]]
    assert heads == [
        *("model", "size", "clips", "texts", "languages", "recognition", "scores", "ok")
    ]
    assert main(["validate", str(tmp_path / "toy.yaml")]) == 0
    assert "model:" not in capsys.readouterr().out


def test_the_command_stops_at_the_first_that_fails(scenario, capsys, tmp_path):
    scenario()
    words = ["--set", "clients.budget_mb=0.001"]
    assert main(["validate", "--deep", str(tmp_path / "toy.yaml"), *words]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("model: ")
    assert err.startswith(
        "error: clients.budget_mb: the smallest budget, 0.00 MB (1,048 bytes) of "
    )


def test_a_budget_that_nothing_fits_names_both_sizes(scenario):
    with pytest.raises(FedsimError) as caught:
        lines(scenario(overrides=["clients.budget_mb={ann: 0.05, bob: 0.01}"]))
    text = str(caught.value)
    assert text.startswith(
        "clients.budget_mb: the smallest budget, 0.01 MB (10,485 bytes) of client 'bob', is below "
        "the smallest model file, 0.02 MB ("
    )
    assert text.endswith(
        " bytes), 2 bits in every layer: raise the budget or allow smaller bit depths"
    )
    with pytest.raises(FedsimError, match=r"of client 'ann', is below .*, 16 bits in every layer"):
        lines(scenario(overrides=["clients.bit_depths=[16]"]))


def test_every_budget_of_a_matrix_counts(scenario):
    fits = "matrix={clients.budget_mb: [0.06, 0.04], quantization.sensitivity: [median, mean]}"
    assert "0.04 MB (41,943 bytes) of client 'ann', holds" in lines(scenario(overrides=[fits]))[1]
    with pytest.raises(FedsimError, match=r"0.01 MB \(.*\) of client 'ann', is below"):
        lines(scenario(overrides=["matrix={clients.budget_mb: [0.04, 0.01]}"]))


def test_every_model_of_a_matrix_is_loaded(scenario, model_folder):
    models = [str(model_folder(name)) for name in ("ctc-group", "ctc-layer")]
    found = lines(scenario(overrides=[f"matrix={{model.id: {models}}}"]))
    assert len(found) == 14
    assert [line.split(" is a ")[0] for line in found[::7]] == [f"model: {m}" for m in models]


def test_the_size_is_that_of_the_planner(scenario):
    """What is too small by a byte is refused, and what is not is planned."""
    size = smallest(load_study_model(scenario()).sizes)
    assert lines(scenario(overrides=[f"clients.budget_mb={size / 2**20!r}"]))
    with pytest.raises(FedsimError, match="below the smallest model file"):
        lines(scenario(overrides=[f"clients.budget_mb={(size - 1) / 2**20!r}"]))


def test_a_model_that_is_not_there(scenario):
    with pytest.raises(FedsimError, match="there is no model folder"):
        lines(scenario(overrides=["model.id=./none"]))


def test_texts_of_which_nothing_is_left(scenario):
    with pytest.raises(
        FedsimError, match=r"no client has a test clip whose text has a word .*ann/\d.wav: correct"
    ):
        lines(scenario(read=texts("(hm) ...")))


def test_clips_of_another_rate(scenario, tmp_path):
    study = scenario()
    for i in range(5):
        toys.write_wav(tmp_path / f"clips/ann/{i}.wav", toys.clip(0.4, i), rate=8000)
    with pytest.raises(FedsimError, match=r"ann/\d.wav has a rate of 8,000 Hz; resample it to"):
        lines(study)
    assert "0.8 to 0.8 s" in lines(scenario(overrides=["corpus.convert=true"]))[2]


def test_clips_that_the_window_does_not_hold(scenario, tmp_path):
    study = scenario("whisper", ["clients.budget_mb=1"])
    toys.write_wav(tmp_path / "clips/ann/0.wav", toys.clip(4.5))
    with pytest.raises(
        FedsimError, match=r"client 'ann': clip ann/0.wav: a clip of 4.5 s is longer than the model"
    ):
        lines(study)


def test_a_client_that_cannot_take_part_is_left_to_the_run(scenario, tmp_path):
    study = scenario()
    table = tmp_path / "clips/metadata.csv"
    head, *rows = table.read_text().splitlines()
    kept = [row for row in rows if not row.startswith(("ann/3", "ann/4", "ann/2"))]
    table.write_text("\n".join([head, *kept]) + "\n")
    assert lines(study)[2].startswith("clips: client 'bob' has 2 tuning and 3 test clips")
    table.write_text("\n".join([head, *kept[:2]]) + "\n")
    with pytest.raises(FedsimError, match="no client has both tuning and test clips"):
        lines(study)


def test_labels_are_classes(scenario):
    found = lines(scenario("classifier", ["clients.budget_mb=1"], read=texts("Stop")))
    assert found[3] == "classes: the 1 labels of 2 clients are among the model's 4 classes"


def test_labels_that_are_none(scenario):
    with pytest.raises(FedsimError) as caught:
        lines(scenario("classifier", ["clients.budget_mb=1"], read=texts("stp")))
    text = str(caught.value)
    assert text.startswith("client 'ann': test clip ann/")
    assert "'stp'" in text
    assert "did you mean 'stop'?" in text


@pytest.mark.parametrize(
    ("languages", "sentence"),
    [
        (("it", "german"), "languages: the model knows de, it"),
        (("it", ""), "languages: the model knows it; the others' is detected clip by clip"),
        (("", ""), "languages: none is given, so the model detects it clip by clip"),
    ],
)
def test_languages_that_the_model_knows(scenario, languages, sentence):
    study = scenario("whisper", ["clients.budget_mb=1"], languages=languages)
    assert lines(study)[4] == sentence


@pytest.mark.parametrize("language", ["ru", "xx"])
def test_languages_that_it_does_not_know(scenario, language):
    study = scenario("whisper", ["clients.budget_mb=1"], languages=("it", language))
    with pytest.raises(FedsimError, match=rf"knows no language '{language}'"):
        lines(study)


def test_an_english_whisper_takes_no_language(scenario):
    study = scenario("whisper-english", ["clients.budget_mb=1"])
    assert lines(study)[4] == "languages: the model takes none"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def paper(name, corpus, model, *overrides):
    return load_scenario(
        PAPER / f"{name}.yaml", [f"corpus.path={corpus}", f"model.id={model}", *overrides]
    )


def test_the_gender_study_with_a_model_of_its_shape(tmp_path, cache):
    model = toys.save(toys.wav2vec2("group", **BASE_960H), tmp_path / "base")
    corpus = hub_toys.write_librispeech(tmp_path / "librispeech")
    clips = ("corpus.tuning_clips=2", "corpus.test_clips=4")
    found = lines(paper("gender", corpus, model, *clips))
    assert "a Wav2Vec2ForCTC of 16 layers" in found[0]
    assert found[1].startswith("size: the smallest budget, 58.00 MB (60,817,408 bytes) of client")
    assert found[3] == "texts: 8 references of 2 clients, none empty once normalized"
    with pytest.raises(FedsimError, match=r"2.00 MB \(.*\) of client 'female', is below"):
        lines(paper("gender", corpus, model, *clips, "matrix={clients.budget_mb: [58, 2]}"))


def test_the_speaker_study_with_a_model_of_its_shape(tmp_path, cache):
    network = toys.conformer(head="ForSequenceClassification", **CONFORMER_LARGE)
    model = toys.save(network, tmp_path / "conformer")
    corpus = hub_toys.write_commands(tmp_path / "commands", {"aa": 20, "bb": 20})
    found = lines(paper("speaker", corpus, model))
    assert "a Wav2Vec2ConformerForSequenceClassification of " in found[0]
    assert found[2].startswith("clips: client 'aa' has 5 tuning and 15 test clips, 16,000 Hz")
    assert found[3].endswith("labels of 2 clients are among the model's 36 classes")


def test_the_language_study_asks_for_a_model_that_knows_its_languages(
    tmp_path, cache, model_folder
):
    corpus = hub_toys.write_fleurs(tmp_path / "fleurs")
    clips = ("corpus.tuning_clips=2", "corpus.test_clips=3")
    few = "corpus.config={de: de_de, en: en_us, fr: fr_fr}"
    found = lines(paper("language", corpus, model_folder("whisper"), *clips, few))
    assert found.pop(5).startswith("recognition: test clip de_de/0000000 of client 'de'")
    assert found[3:] == [
        "texts: 9 references of 3 clients, none empty once normalized",
        "languages: the model knows de, en, fr",
        "scores: WER, texts normalized by basic",
    ]
    with pytest.raises(FedsimError, match=r"knows no language 'ca'"):
        lines(paper("language", corpus, model_folder("whisper"), *clips))
