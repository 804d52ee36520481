"""The keystream is AES-256-CTR under all 256 bits that the operating system gave, computed apart."""

from __future__ import annotations

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privacy import keystream
from privacy.keystream import KeyStream

KEY, REFILL = 32, 1 << 16


def aes(key: bytes) -> bytes:
    """What a key gives: the next key, then a refill."""
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return encryptor.update(bytes(KEY + REFILL))


def test_every_key_is_256_fresh_bits_and_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bytes] = []
    urandom = os.urandom

    def watched(size: int) -> bytes:
        given.append(urandom(size))
        return given[-1]

    monkeypatch.setattr(keystream.os, "urandom", watched)
    stream = KeyStream()
    monkeypatch.undo()
    (key,) = given
    assert len(key) == KEY
    out = np.zeros(3 * REFILL, dtype=np.uint8)
    stream.fill(out)
    for refill in range(3):
        block = aes(key)
        key = block[:KEY]
        assert out[refill * REFILL : (refill + 1) * REFILL].tobytes() == block[KEY:]
