"""The source of all random numbers: a scenario's seed, a client's key and a purpose."""

from __future__ import annotations

import hashlib

import numpy as np


def client_rng(seed: int, client: str, purpose: str) -> np.random.Generator:
    """Return the generator for one purpose of one client, the same on every machine and engine."""
    words = [
        int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
        for text in (client, purpose)
    ]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))
