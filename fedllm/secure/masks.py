"""Expand seeds into masks: uniform vectors of a ring, added in place."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privacy.secure_sum.ring import Ring

_CHUNK = 1 << 20
"""Bytes that are expanded at once, a multiple of 8."""


def add_mask(total: Ring, seed: bytes, sign: int = 1) -> None:
    """Add the mask of a seed to a vector in place, or subtract it (sign = -1), modulo the ring's size.

    The mask is the key stream of AES-256 in counter mode (NIST SP 800-38A) under the seed, from counter 0, as little-endian words.
    A seed serves for one vector.

    Args:
        total: uint32 or uint64 [d].
        seed: 32 bytes, uniform.
    """
    stream = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor()
    word = total.dtype.itemsize
    zeros = bytes(min(_CHUNK, total.size * word))
    for start in range(0, total.size, _CHUNK // word):
        part = total[start : start + _CHUNK // word]
        mask = np.frombuffer(stream.update(zeros[: part.size * word]), f"<u{word}")
        if sign > 0:
            part += mask
        else:
            part -= mask
