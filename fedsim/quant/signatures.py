"""Signatures of model files: Ed25519, whose private key signs and whose public key checks.

A hash inside a file protects from accidents only: whoever changes the file makes another hash. A
device that holds the public key of its server tells the server's files from all others, and can
sign none itself. Keys are PEM files, as `openssl genpkey -algorithm ed25519` writes them.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.errors import FedsimError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

KeySource = str | os.PathLike[str] | bytes
"""A key: the path of a PEM file, or the contents of one (bytes)."""
SIGNATURE_BYTES, SIGNATURE_CHARS = 64, 88
"""Bytes of a signature, and characters in base64."""
_PURPOSE = b"fedsim model file\0"
"""Precedes what is signed, so that no signature made for something else fits a model file."""
_MAX_PEM = 1 << 16


def signer(key: KeySource) -> Callable[[bytes], str]:
    """Return a function that signs bytes with a private key: the signature in base64.

    Raises `FedsimError` for anything but an Ed25519 private key without a password.
    """
    private = _private(_pem(key), key)
    if private is None:
        raise FedsimError(
            f"{_name(key)} is a public key, which checks signatures; sign with the private one"
        )
    return lambda data: b64encode(private.sign(_PURPOSE + data)).decode()


def verifier(key: KeySource) -> Callable[[bytes, bytes], bool]:
    """Return f: data, signature (64 bytes) -> whether the key's owner signed these data.

    `key` is the public key; the private one, which holds it, serves too. Raises `FedsimError` for
    anything but an Ed25519 key.
    """
    from cryptography.exceptions import InvalidSignature

    public = _public(key)

    def check(data: bytes, signature: bytes) -> bool:
        try:
            public.verify(signature, _PURPOSE + data)
        except InvalidSignature:
            return False
        return True

    return check


def _public(key: KeySource) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    pem = _pem(key)
    private = _private(pem, key)
    if private is not None:
        return private.public_key()
    public = load_pem_public_key(pem)  # `_private` has loaded it before
    assert isinstance(public, Ed25519PublicKey)
    return public


def _private(pem: bytes, key: KeySource) -> Ed25519PrivateKey | None:
    """Return the private key in a PEM text; None for a public one; `FedsimError` for another."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )
    from cryptography.hazmat.primitives.serialization import (
        load_pem_private_key,
        load_pem_public_key,
    )

    found: object = None
    try:
        is_private = b" PRIVATE KEY-" in pem
        found = load_pem_private_key(pem, None) if is_private else load_pem_public_key(pem)
    except TypeError as error:  # a password is asked for
        raise FedsimError(
            f"{_name(key)} is encrypted; give a key without a password, such as the output of "
            f"`openssl pkey`"
        ) from error
    except (ValueError, UnsupportedAlgorithm):
        pass
    if isinstance(found, Ed25519PrivateKey | Ed25519PublicKey):
        return found if isinstance(found, Ed25519PrivateKey) else None
    raise FedsimError(
        f"{_name(key)} is not an Ed25519 key in PEM format; make a pair with "
        f"`openssl genpkey -algorithm ed25519`, see docs/model_file.md"
    )


def _pem(key: KeySource) -> bytes:
    if isinstance(key, bytes):
        return key
    try:
        with Path(key).open("rb") as file:
            return file.read(_MAX_PEM)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FedsimError(f"the key {key} cannot be read: {reason}; check the path") from error


def _name(key: KeySource) -> str:
    return "the key" if isinstance(key, bytes) else f"the key {os.fspath(key)}"
