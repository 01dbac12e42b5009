"""Files that `load_personalized` reads: signed, hostile, or of another model."""

from __future__ import annotations

import hashlib
import json
import re
import struct

import paper
import pytest
import toys
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from properties import examples

from fedsim import load_personalized, personalize
from fedsim.base.files import read_text
from fedsim.errors import FedsimError, ModelFileError
from fedsim.speech.audio import read_clip

CLIPS = toys.clips([0.3, 0.5, 0.44, 0.6])
OTHERS = toys.clips([0.4, 0.31], seed=1)


def pair() -> tuple[bytes, bytes]:
    key = Ed25519PrivateKey.generate()
    return (
        key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()),
        key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo),
    )


PRIVATE, PUBLIC = pair()


@pytest.fixture
def made(speech):
    return personalize(speech("ctc-group"), CLIPS, budget_mb=0.0334, **paper.OPTIONS)


@pytest.fixture
def whisper(speech):
    options = {"budget_mb": 0.075, "language": "it", **paper.OPTIONS}
    return personalize(speech("whisper"), CLIPS, **options)


def changed(data: bytes, change) -> bytes:
    """The file after `change(header, manifest)`, with the hash that belongs to it."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    about = header["__metadata__"]
    manifest = json.loads(about["manifest"])
    change(header, manifest)
    about |= {"manifest": json.dumps(manifest, sort_keys=True), "sha256": "0" * 64}
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    blank = struct.pack("<Q", len(text)) + text + body
    digest = hashlib.sha256(blank).hexdigest().encode()
    return blank.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + digest, 1)


def test_a_signed_file_loads_with_its_key_and_without(made, speech, tmp_path):
    (tmp_path / "server.pem").write_bytes(PRIVATE)
    (tmp_path / "server.pub").write_bytes(PUBLIC)
    path = tmp_path / "user.safetensors"
    size = made.save(path, key=tmp_path / "server.pem")
    assert size == path.stat().st_size == made.nbytes
    heard = made.transcribe(OTHERS)
    for model in (speech("ctc-group"), None):
        for key in (tmp_path / "server.pub", PUBLIC, None):
            loaded = load_personalized(path, model, key=key)
            assert loaded.transcribe(OTHERS) == heard
            assert loaded.nbytes == size


def test_a_key_demands_a_signature(made, speech, tmp_path):
    path = tmp_path / "user.safetensors"
    for key, how in ((None, "not signed"), (pair()[0], "signed with another key")):
        made.save(path, key=key)
        for model in (speech("ctc-group"), None):
            with pytest.raises(ModelFileError, match=rf"user.safetensors is {how}; ask for one"):
                load_personalized(path, model, key=PUBLIC)


def test_a_changed_file_is_not_signed(made, tmp_path):
    """Its hash is right, so only the key tells it from the server's."""
    path = tmp_path / "user.safetensors"
    made.save(path, key=PRIVATE)
    data = path.read_bytes()

    def unsign(header, manifest):
        del header["__metadata__"]["ed25519"]

    path.write_bytes(changed(data, unsign))
    assert load_personalized(path).bits == made.bits
    with pytest.raises(ModelFileError, match="is not signed"):
        load_personalized(path, key=PUBLIC)


def test_what_an_unverified_file_names_is_not_loaded(made, tmp_path):
    """The signature is checked before the model that a file names is looked for."""
    made.save(tmp_path / "user", key=PRIVATE)

    def rename(header, manifest):
        manifest["model"] = "/somewhere/else"

    path = tmp_path / "other"
    path.write_bytes(changed((tmp_path / "user").read_bytes(), rename))
    with pytest.raises(ModelFileError, match="signed with another key"):
        load_personalized(path, key=PUBLIC)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("window_s", "30", "its window_s is not a number of seconds"),
        ("window_s", True, "its window_s is not a number of seconds"),
        ("window_s", -1.0, "its window_s is not a number of seconds"),
        ("window_s", 10**400, "its window_s is not a number of seconds"),
        ("window_s", 1e308, "its window_s is not a number of seconds"),
        ("keep", "abc", "its keep is not a list of names"),
        ("keep", [1], "its keep is not a list of names"),
        ("language", 3, "its language is not a text"),
        ("target_lang", 3, "its target_lang is not a text"),
    ],
)
def test_settings_that_no_loader_takes(whisper, speech, tmp_path, name, value, reason):
    path = tmp_path / "user"
    whisper.save(path)
    path.write_bytes(changed(path.read_bytes(), lambda h, m: m["settings"].update({name: value})))
    with pytest.raises(ModelFileError, match=reason):
        load_personalized(path)
    with pytest.raises(ModelFileError):  # other settings may need a header of another length
        load_personalized(path, speech("whisper"))


values = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)) | st.lists(
    st.integers(0, 20) | st.text(max_size=3), max_size=4
)


@settings(
    max_examples=examples(60),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(["model", "fingerprint", "granularity", "zero_points", "bits", "settings"]),
    values,
)
def test_any_manifest_is_refused_or_gives_an_equal_model(made, speech, tmp_path, field, value):
    path = tmp_path / "user"
    made.save(path)
    path.write_bytes(changed(path.read_bytes(), lambda h, m: m.update({field: value})))
    try:
        loaded = load_personalized(path, speech("ctc-group"))
    except ModelFileError:
        return
    assert loaded.transcribe(OTHERS[:1]) == made.transcribe(OTHERS[:1])


def test_a_model_named_by_a_file_that_there_is_not(made, tmp_path):
    made.save(tmp_path / "user")
    for name in ("/nowhere/model", "bundled:../../etc", "..", "a b c", "x" * 200):
        path = tmp_path / "other"
        path.write_bytes(
            changed((tmp_path / "user").read_bytes(), lambda h, m, n=name: m.update(model=n))
        )
        with pytest.raises(FedsimError) as caught:
            load_personalized(path)
        assert not re.search("Traceback|\n", str(caught.value))


def test_a_name_that_no_file_has():
    with pytest.raises(ModelFileError, match="no file has such a name"):
        load_personalized("a\0b")


def test_a_file_of_a_model_in_a_relative_folder(made, model_folder, tmp_path, monkeypatch):
    """The name in the file means another place from another folder: the hub is not to blame."""
    monkeypatch.chdir(model_folder("ctc-group").parent)
    mine = personalize("ctc-group", CLIPS, budget_mb=0.0334, **paper.OPTIONS)
    mine.save(tmp_path / "mine.safetensors")
    monkeypatch.chdir(tmp_path)
    sentence = r"made from the model 'ctc-group', .*; name it: load_personalized\(path, model="
    with pytest.raises(FedsimError, match=sentence):
        load_personalized("mine.safetensors")
    again = load_personalized("mine.safetensors", model_folder("ctc-group"))
    assert again.transcribe(OTHERS) == mine.transcribe(OTHERS)


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * '0'}\nsize 9\n"


def test_pointers_of_git_lfs_in_place_of_files(tmp_path):
    for name in ("mine.safetensors", "clip.wav", "metadata.csv"):
        (tmp_path / name).write_text(POINTER)
    reads = [
        lambda: load_personalized(tmp_path / "mine.safetensors"),
        lambda: read_clip(tmp_path / "clip.wav", "clip.wav"),
        lambda: read_text(tmp_path / "metadata.csv", 9_999),
    ]
    for read in reads:
        with pytest.raises(FedsimError, match=r"a pointer of Git LFS.*run git lfs pull in its"):
            read()
