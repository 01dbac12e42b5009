"""Signed model files: by whom, over what, and at no cost in bytes."""

from __future__ import annotations

import base64
import json
import re
import struct
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from quant_toys import Talker, Toy, model_file
from safetensors.numpy import load_file

from fedsim.errors import FedsimError, ModelFileError
from fedsim.quant.modelfile import model_sizes, read, read_manifest, write

TOY = Toy(Talker())
MODEL = model_file(TOY, (3, 8, 16, 5), settings={"language": "it"})


def private_pem(key, password: bytes | None = None) -> bytes:
    how = pem.NoEncryption() if password is None else pem.BestAvailableEncryption(password)
    return key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, how)


def public_pem(key) -> bytes:
    return key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)


OWNER, STRANGER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
PRIVATE, PUBLIC = private_pem(OWNER), public_pem(OWNER)


@pytest.fixture
def signed(tmp_path):
    path = tmp_path / "signed.safetensors"
    write(path, TOY.layers, MODEL, PRIVATE)
    return path


def test_a_signed_file_is_as_long_as_an_unsigned_one(signed, tmp_path):
    length = write(tmp_path / "plain", TOY.layers, MODEL)
    sizes = model_sizes(TOY.layers, MODEL.leftovers, MODEL.manifest, (3, 5, 8, 16))
    assert signed.stat().st_size == length == sizes.total(MODEL.manifest.bits)
    plain, data = (tmp_path / "plain").read_bytes(), signed.read_bytes()
    (header,) = struct.unpack("<Q", data[:8])
    assert data[8 + header :] == plain[8 + header :]
    assert load_file(signed).keys() == load_file(tmp_path / "plain").keys()


def test_the_owner_signs_and_the_public_key_checks(signed, tmp_path):
    (tmp_path / "public.pem").write_bytes(PUBLIC)
    for key in (PUBLIC, tmp_path / "public.pem", str(tmp_path / "public.pem"), PRIVATE, None):
        assert read(signed, TOY.layers, key=key).manifest == MODEL.manifest
        assert read_manifest(signed, key) == MODEL.manifest
    once = signed.read_bytes()
    write(signed, TOY.layers, MODEL, PRIVATE)
    assert signed.read_bytes() == once  # Ed25519 draws nothing


def test_the_signature_is_that_of_the_guide(signed):
    """Checked by hand, as docs/model_file.md says: over the header with 88 zeros in its place."""
    data = signed.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = data[: 8 + length]
    text = json.loads(header[8:])["__metadata__"]["ed25519"]
    assert len(text) == 88
    message = b"fedsim model file\0" + header.replace(text.encode(), b"0" * 88)
    OWNER.public_key().verify(base64.b64decode(text), message)


def test_other_files_are_refused_in_one_sentence(signed, tmp_path):
    write(tmp_path / "plain", TOY.layers, MODEL)
    write(tmp_path / "other", TOY.layers, MODEL, private_pem(STRANGER))
    for name, how in (("plain", "not signed"), ("other", "signed with another key")):
        path = tmp_path / name
        assert read(path, TOY.layers).manifest == MODEL.manifest
        for attempt in (
            lambda p=path: read(p, TOY.layers, key=PUBLIC),
            lambda p=path: read_manifest(p, PUBLIC),
        ):
            with pytest.raises(ModelFileError) as caught:
                attempt()
            assert str(caught.value) == (
                f"the model file {path} is {how}; ask for one that the owner of the key signed"
            )


def test_a_signature_is_of_one_file(signed, tmp_path):
    """Neither its own file after a change, nor another, whoever made the hash right."""
    text = json.loads(_header(signed.read_bytes()))["__metadata__"]["ed25519"]
    others = [
        model_file(TOY, (3, 8, 16, 6), settings={"language": "it"}),
        replace(MODEL, manifest=replace(MODEL.manifest, model="Toy")),
        replace(MODEL, manifest=replace(MODEL.manifest, settings={"language": "en"})),
        replace(MODEL, inputs=(*MODEL.inputs[:3], replace(MODEL.inputs[3], bits=8))),
    ]
    for other in others:
        path = tmp_path / "other"
        write(path, TOY.layers, other, private_pem(STRANGER))
        data = path.read_bytes()
        strange = json.loads(_header(data))["__metadata__"]["ed25519"]
        path.write_bytes(data.replace(strange.encode(), text.encode()))
        assert read(path, TOY.layers).manifest == other.manifest  # its hash is right
        with pytest.raises(ModelFileError, match="signed with another key"):
            read(path, TOY.layers, key=PUBLIC)


def test_a_signed_file_that_is_damaged(signed):
    """Header damage spoils the signature, damage of tensors the hash that is signed."""
    data = signed.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    for place in (*range(60, length, 97), *range(8 + length, len(data), 31)):
        signed.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ModelFileError):
            read(signed, TOY.layers, key=PUBLIC)
        with pytest.raises(ModelFileError):
            read_manifest(signed, PUBLIC)
    text = json.loads(_header(data))["__metadata__"]["ed25519"].encode()
    for other in (b"A" * 86 + b"==", text[1:86][::-1] + b"A=="):
        signed.write_bytes(data.replace(text, other))
        with pytest.raises(ModelFileError, match="signed with another key"):
            read(signed, TOY.layers, key=PUBLIC)


def test_every_flipped_bit_of_a_signature_is_found(signed):
    """Also those of the last letter, which a decoder of base64 does not read."""
    data = signed.read_bytes()
    text = json.loads(_header(data))["__metadata__"]["ed25519"].encode()
    start = data.index(text)
    for bit in range(8 * start, 8 * (start + 88)):
        spoilt = bytearray(data)
        spoilt[bit // 8] ^= 1 << bit % 8
        signed.write_bytes(spoilt)
        with pytest.raises(ModelFileError):
            read(signed, TOY.layers, key=PUBLIC)
    last = text[85:86]
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    twin = alphabet[alphabet.index(last) ^ 1]
    other = text[:85] + bytes([twin]) + b"=="
    assert base64.b64decode(other) == base64.b64decode(text)
    signed.write_bytes(data.replace(text, other))
    for key in (PUBLIC, None):
        with pytest.raises(ModelFileError, match="its signature is malformed"):
            read(signed, TOY.layers, key=key)


@pytest.mark.parametrize("other", [b"0" * 88, b"!" * 88, b"A" * 87 + b"=", b"\\u00e9" + b"A" * 82])
def test_what_is_no_signature(signed, other):
    data = signed.read_bytes()
    text = json.loads(_header(data))["__metadata__"]["ed25519"].encode()
    signed.write_bytes(data.replace(text, other))
    for key in (PUBLIC, None):
        with pytest.raises(ModelFileError, match="its signature is malformed"):
            read(signed, TOY.layers, key=key)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (b"", "not an Ed25519 key in PEM format; make a pair with"),
        (b"secret", "not an Ed25519 key"),
        (PUBLIC[:-30], "not an Ed25519 key"),
        (private_pem(generate_private_key(65537, 2048)), "not an Ed25519 key"),
        (public_pem(generate_private_key(65537, 2048)), "not an Ed25519 key"),
        (private_pem(OWNER, b"word"), "is encrypted; give a key without a password"),
        ("/nowhere/key.pem", r"/nowhere/key.pem cannot be read: No such file.*check the path"),
        ("a\0b", r"cannot be read: .*null.*check the path"),
        ("/", r"cannot be read: Is a directory"),
    ],
    ids=["empty", "text", "cut", "rsa", "rsa-public", "encrypted", "nowhere", "null", "folder"],
)
def test_a_key_that_is_none(key, reason, signed, tmp_path):
    for attempt in (
        lambda: read(signed, TOY.layers, key=key),
        lambda: read_manifest(signed, key),
        lambda: write(tmp_path / "new", TOY.layers, MODEL, key),
    ):
        with pytest.raises(FedsimError, match=reason):
            attempt()
    assert not (tmp_path / "new").exists()


def test_a_public_key_signs_nothing(tmp_path):
    (tmp_path / "public.pem").write_bytes(PUBLIC)
    with pytest.raises(FedsimError, match=r"public.pem is a public key.*sign with the private"):
        write(tmp_path / "new", TOY.layers, MODEL, tmp_path / "public.pem")
    assert not (tmp_path / "new").exists()


def test_a_header_without_room(tmp_path):
    """Its length does not depend on a signature, so a path of 208 characters leaves no room."""
    settings = {"language": "it"}
    for length in (1, 120):
        model = replace(MODEL, manifest=replace(MODEL.manifest, model="m" * length))
        write(tmp_path / "m", TOY.layers, model, PRIVATE)
        assert read(tmp_path / "m", TOY.layers, key=PUBLIC).manifest.settings == settings
    for length in (208, 1000):
        model = replace(MODEL, manifest=replace(MODEL.manifest, model="m" * length))
        with pytest.raises(FedsimError, match=r"no room for a signature.* characters too long"):
            write(tmp_path / "long", TOY.layers, model, PRIVATE)
        assert not (tmp_path / "long").exists()
        write(tmp_path / "unsigned", TOY.layers, model)


def _header(data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length]
    assert re.match(rb"\{", header)
    return header
