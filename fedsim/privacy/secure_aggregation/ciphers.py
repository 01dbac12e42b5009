"""The ciphers of secure aggregation, from `cryptography` and `pycryptodome`.

Flower's own secure aggregation generates a mask from a seed of 32 bits, of which the key between
two members sets only 28: few enough to try all. Masks here are a ChaCha20 key stream with a key of
256 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from secrets import token_bytes
from typing import TYPE_CHECKING

import numpy as np

from fedsim.errors import FedsimError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

SECRET_BYTES = 16
"""Of a secret that is split into shares: the seed of a mask, or of a private key (128 bits)."""
KEY_BYTES = 32
"""Of a public key."""
_NONCE_BYTES, _TAG_BYTES = 12, 16
SEALED_BYTES = _NONCE_BYTES + 2 * SECRET_BYTES + _TAG_BYTES
"""Of two shares, sealed."""


def new_secret() -> bytes:
    """Return 16 bytes from the operating system."""
    return token_bytes(SECRET_BYTES)


def public_key(secret: bytes) -> bytes:
    """Return the public key (X25519, 32 bytes) that belongs to a secret."""
    return _private(secret).public_key().public_bytes_raw()


def shared_key(secret: bytes, public: bytes, purpose: str) -> bytes:
    """Return the key (32 bytes) that only the owners of the two secrets can compute.

    Raises `FedsimError` if `public` is not an X25519 key.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    try:
        raw = _private(secret).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise FedsimError(
            f"the public key of {len(public)} bytes is not an X25519 key ({error}); send another"
        ) from error
    return _derive(raw, purpose)


def seed_key(seed: bytes) -> bytes:
    """Return the key (32 bytes) of a member's own mask."""
    return _derive(seed, "own mask")


def mask(key: bytes, length: int) -> np.ndarray:
    """Return the mask of a key, uint32 (length,): a ChaCha20 key stream. Use each key once."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(4 * length))
    return np.frombuffer(stream, "<u4")


def seal(key: bytes, sender: int, receiver: int, text: bytes) -> bytes:
    """Return the text encrypted and bound to its sender and receiver (ChaCha20-Poly1305)."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    nonce = token_bytes(_NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, text, _way(sender, receiver))


def unseal(key: bytes, sender: int, receiver: int, sealed: bytes) -> bytes:
    """Return what `seal` encrypted.

    Raises `FedsimError` if it was changed, or is for another receiver or from another sender.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    nonce, text = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, text, _way(sender, receiver))
    except (InvalidTag, ValueError) as error:
        raise FedsimError(
            f"the envelope from member {sender} to member {receiver} was changed in transit, or has"
            " another sender or receiver; start a new group"
        ) from error


def split(secret: bytes, threshold: int, members: int) -> list[bytes]:
    """Return one share (16 bytes) per member; any `threshold` of them give the secret (Shamir)."""
    from Crypto.Protocol.SecretSharing import Shamir

    return [share for _, share in Shamir.split(threshold, members, secret, ssss=False)]


def combine(shares: Sequence[tuple[int, bytes]]) -> bytes:
    """Return the secret, from (number of the share from 1, share) of exactly `threshold`."""
    from Crypto.Protocol.SecretSharing import Shamir

    return Shamir.combine(list(shares), ssss=False)


def _private(secret: bytes) -> X25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(_derive(secret, "private key"))


def _derive(material: bytes, purpose: str) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = f"fedsim cohort: {purpose}".encode()
    return HKDF(SHA256(), length=32, salt=None, info=info).derive(material)


def _way(sender: int, receiver: int) -> bytes:
    return f"{sender} to {receiver}".encode()
