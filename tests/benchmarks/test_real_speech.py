from __future__ import annotations

import hashlib
import json
import signal
import struct

import numpy as np
import pytest

from benchmarks.real_speech import __main__ as command
from benchmarks.real_speech.ctranslate2 import read_variables, to_transformers
from benchmarks.real_speech.fetch import Deb, Wheel, fetch_debs, is_finished, publish
from benchmarks.real_speech.prompts import Prompt, plausible
from benchmarks.real_speech.texts import parse_texts, plain_text
from benchmarks.real_speech.whisper import generation_config, model_config
from fedsim.errors import FedsimError

SPECIAL = {
    "<|endoftext|>": 57,
    "<|startoftranscript|>": 58,
    "<|en|>": 59,
    "<|ru|>": 60,
    "<|translate|>": 61,
    "<|transcribe|>": 62,
    "<|startofprev|>": 63,
    "<|notimestamps|>": 64,
}


def packed_text(text: str) -> bytes:
    data = text.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def packed_file(variables: dict[str, np.ndarray], aliases: dict[str, str]) -> bytes:
    numbers = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    data = struct.pack("<I", 6) + packed_text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        data += packed_text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += struct.pack("<BI", numbers[array.dtype.name], array.nbytes) + array.tobytes()
    data += struct.pack("<I", len(aliases))
    return data + b"".join(packed_text(a) + packed_text(b) for a, b in aliases.items())


def ctranslate2_variables(config) -> dict[str, np.ndarray]:
    """What a converter would write for a Whisper of this size, with random values."""
    draw = np.random.default_rng(0)
    width, variables = config.d_model, {}

    def linear(name: str, rows: int, columns: int) -> None:
        variables[f"{name}/weight"] = draw.normal(size=(rows, columns)).astype(np.float16)
        variables[f"{name}/bias"] = draw.normal(size=rows).astype(np.float16)

    def norm(name: str) -> None:
        variables[f"{name}/gamma"] = draw.normal(size=width).astype(np.float16)
        variables[f"{name}/beta"] = draw.normal(size=width).astype(np.float16)

    def attention(name: str, projections: tuple[int, ...], keys: tuple[int, slice]) -> None:
        norm(f"{name}/layer_norm")
        for index, stacked in enumerate(projections):
            linear(f"{name}/linear_{index}", stacked * width, width)
        variables[f"{name}/linear_{keys[0]}/bias"][keys[1]] = 0

    def table(name: str, rows: int) -> None:
        variables[name] = draw.normal(size=(rows, width)).astype(np.float16)

    for index, bins in enumerate((config.num_mel_bins, width), start=1):
        linear(f"encoder/conv{index}", width, bins * 3)
        weight = variables[f"encoder/conv{index}/weight"]
        variables[f"encoder/conv{index}/weight"] = weight.reshape(width, bins, 3)
    table("encoder/position_encodings/encodings", config.max_source_positions)
    table("decoder/position_encodings/encodings", config.max_target_positions)
    table("decoder/embeddings/weight", config.vocab_size)
    variables["decoder/projection/weight"] = variables["decoder/embeddings/weight"]
    variables["decoder/scale_embeddings"] = np.int8(0)
    for side in ("encoder", "decoder"):
        variables[f"{side}/num_heads"] = np.int16(getattr(config, f"{side}_attention_heads"))
        variables[f"{side}/pre_norm"] = np.int8(1)
        norm(f"{side}/layer_norm")
        for index in range(getattr(config, f"{side}_layers")):
            layer = f"{side}/layer_{index}"
            attention(f"{layer}/self_attention", (3, 1), (0, slice(width, 2 * width)))
            if side == "decoder":
                attention(f"{layer}/attention", (1, 2, 1), (1, slice(0, width)))
            hidden = getattr(config, f"{side}_ffn_dim")
            norm(f"{layer}/ffn/layer_norm")
            linear(f"{layer}/ffn/linear_0", hidden, width)
            linear(f"{layer}/ffn/linear_1", width, hidden)
    return variables


@pytest.fixture(scope="module")
def tiny_config():
    from transformers import WhisperConfig

    return WhisperConfig(
        vocab_size=72,
        num_mel_bins=4,
        d_model=8,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=12,
        decoder_ffn_dim=16,
        max_source_positions=20,
        max_target_positions=10,
        decoder_start_token_id=58,
        bos_token_id=57,
        eos_token_id=57,
        pad_token_id=57,
    )


def test_reader_gives_back_names_shapes_types_and_values():
    written = {
        "decoder/embeddings/weight": np.arange(6, dtype=np.float16).reshape(2, 3),
        "decoder/num_heads": np.array(8, dtype=np.int16),
        "encoder/scale": np.array([0.5, -1.0], dtype=np.float32),
    }
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
    read = read_variables(packed_file(written, aliases))
    assert list(read) == [*written, *aliases]
    for name, array in written.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    assert read["decoder/projection/weight"] is read["decoder/embeddings/weight"]


@pytest.mark.parametrize(
    ("damage", "remedy"),
    [
        (lambda data: data[:-30], "download it again"),
        (lambda data: struct.pack("<I", 5) + data[4:], r"version 5; use one of version 6"),
    ],
)
def test_reader_refuses_a_damaged_file(damage, remedy):
    data = packed_file({"a/b": np.zeros((4, 4), np.float16)}, {})
    with pytest.raises(FedsimError, match=remedy):
        read_variables(damage(data))


def test_names_and_shapes_are_those_of_transformers(tiny_config):
    import torch
    from transformers import WhisperForConditionalGeneration

    variables = ctranslate2_variables(tiny_config)
    state = to_transformers(variables)
    model = WhisperForConditionalGeneration(tiny_config)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in state.items()} == expected
    model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    # Keys and values of the cross-attention come in this order out of one matrix.
    stacked = variables["decoder/layer_0/attention/linear_1/weight"]
    prefix = "model.decoder.layers.0.encoder_attn"
    np.testing.assert_array_equal(state[f"{prefix}.k_proj.weight"], stacked[:8])
    np.testing.assert_array_equal(state[f"{prefix}.v_proj.weight"], stacked[8:])


def test_a_bias_on_the_keys_is_not_dropped_silently(tiny_config):
    variables = ctranslate2_variables(tiny_config)
    variables["encoder/layer_0/self_attention/linear_0/bias"][8] = 1
    with pytest.raises(FedsimError, match=r"bias on its keys.*use the file"):
        to_transformers(variables)


def test_configuration_is_read_off_the_weights(tiny_config):
    config = model_config(ctranslate2_variables(tiny_config), SPECIAL)
    for key in set(config) - {"architectures", "dtype"}:
        assert config[key] == getattr(tiny_config, key), key
    json.dumps(config)  # nothing of numpy is left in it


def test_generation_knows_languages_and_tasks():
    settings = {
        "lang_ids": [59, 60],
        "suppress_ids": [1],
        "suppress_ids_begin": [2, 57],
        "alignment_heads": [[0, 1]],
    }
    config = generation_config(settings, SPECIAL)
    assert config["lang_to_id"] == {"<|en|>": 59, "<|ru|>": 60}
    assert config["task_to_id"] == {"transcribe": 62, "translate": 61}
    assert config["decoder_start_token_id"] == 58
    assert config["eos_token_id"] == config["pad_token_id"] == 57
    assert config["no_timestamps_token_id"] == 64


def test_texts_are_parsed_despite_byte_order_mark_remarks_and_colons():
    raw = (
        "\ufeff; Core Asterisk Sounds in Italian\n; “core sound”: elenco\n\n"
        "agent-pass: Prego digitare: la password.  \n"
        "digits/0: cero\ndigits/0: diez\n"
        "a line that names nothing\n"
        "letters/at: a [@]\n"
    )
    assert parse_texts(raw.encode()) == {
        "agent-pass": "Prego digitare: la password.",
        "digits/0": "cero",
        "letters/at": "a [@]",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Please   press 1 now.", "Please press 1 now."),
        ("...to leave the conference.", "to leave the conference."),
        ("Per lasciare la conferenza...", "Per lasciare la conferenza"),
        ("Если вы «недоступны» сейчас…", "Если вы «недоступны» сейчас"),
        ("... pour votre voix, tel qu'entendue...\"", "pour votre voix, tel qu'entendue"),
        ("Ho un chiamante in attesa::", "Ho un chiamante in attesa"),
        ("Login incorrect.  Mailbox? Try again", "Login incorrect. Mailbox? Try again"),
        ("En que carpeta desea guardar el mensaje ?", "En que carpeta desea guardar el mensaje ?"),
        ("In quale cartella? È vuota.", "In quale cartella? È vuota."),
        ("Il y a présentement plus de", "Il y a présentement plus de"),
        # Not plain: directions, signs, lost letters, gaps, spelling, lost line breaks.
        ("[this is a simple beep tone]", None),
        ("Voce disattivata. (You are now muted.)", None),
        ("press * to toggle pause", None),
        ("premere 2 per attivare/disattivare la pausa", None),
        ("La conferenza ? piena.", None),
        ("La chiamata non pu? essere completata", None),
        ("La chiamata non pu\ufffd essere completata", None),
        ("Se questo è corretto... premi uno", None),
        ("M I S D N", None),
        ("Radio U S B", None),
        ("è stato eliminato vm-then-pound: poi premere cancelletto", None),
        ("For more information, visit www.asterisk.org.", None),
        # Too short.
        ("Thank you.", None),
        ("... for ...", None),
    ],
)
def test_plain_text(text, said):
    assert plain_text("some-prompt", text) == said


def test_a_described_sound_or_a_letter_is_no_text():
    assert plain_text("beeperr", "un suono beep di errore") is None
    assert plain_text("phonetic/z_p", "z come zara") is None


def test_a_text_must_fit_its_recording():
    def prompt(name: str, letters: int, seconds: float) -> Prompt:
        return Prompt(name, "x" * letters, np.zeros(int(16000 * seconds), np.float32))

    usual = [prompt(f"usual-{index}", 15 * index, index) for index in range(1, 6)]
    odd = [
        prompt("other-text", 60, 1),  # too much for one second
        prompt("a-tune-follows", 15, 25),  # hardly anything is said
        prompt("long", 15 * 31, 31),  # more than one window of the model
    ]
    assert plausible([*usual, *odd]) == usual


def test_where_apt_get_is_missing_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FedsimError) as caught:
        fetch_debs([Deb("some-voice", "1:2.0-1", "0" * 64)], tmp_path / "debs")
    message = str(caught.value)
    assert "apt-get is not on this machine" in message
    assert "some-voice_1%3a2.0-1_all.deb" in message
    assert str(tmp_path / "debs") in message
    assert "\n" not in message


def test_packages_put_there_by_hand_need_no_apt_get(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    deb = Deb("some-voice", "1-1", hashlib.sha256(b"package").hexdigest())
    (tmp_path / deb.filename).write_bytes(b"package")
    assert fetch_debs([deb], tmp_path) == [tmp_path / deb.filename]
    (tmp_path / deb.filename).write_bytes(b"another package")
    with pytest.raises(FedsimError, match="by hand"):
        fetch_debs([deb], tmp_path)


def test_a_requirement_admits_one_wheel_only():
    wheel = Wheel("some-model-1", "1.0.0", "ab")
    assert wheel.requirement == "some-model-1==1.0.0 --hash=sha256:ab\n"
    assert wheel.filename == "some_model_1-1.0.0-py3-none-any.whl"


def test_a_folder_appears_only_when_it_is_finished(tmp_path):
    final = tmp_path / "part"

    def make(folder):
        (folder / "one").write_text("1")

    def break_off(folder):
        (folder / "two").write_text("2")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(final, 1, break_off)
    assert list(tmp_path.iterdir()) == []
    publish(final, 1, make)
    assert is_finished(final, 1)
    assert not is_finished(final, 2)
    with pytest.raises(KeyboardInterrupt):
        publish(final, 1, break_off)
    assert is_finished(final, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["part"]
    (final / "one").unlink()
    assert not is_finished(final, 1)


@pytest.mark.parametrize(
    "error",
    [
        *(FedsimError("no\nway"), OSError("full"), ValueError("odd")),
        *(ModuleNotFoundError("no", name="av"), KeyboardInterrupt()),
    ],
)
def test_a_failure_is_one_sentence(error, tmp_path, monkeypatch, capsys):
    def fail(cache, force):
        assert (cache, force) == (tmp_path, True)
        raise error

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert command.main(["--cache", str(tmp_path), "--force"], make=fail) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
