"""Share secrets of 256 bits among n holders, so that k restore one and k - 1 learn nothing (Shamir 1979)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedllm.secure.errors import SumRefused

PRIME = 2**256 + 297
"""The smallest prime above 2^256: every secret of 32 bytes is an element of the field."""
SHARE_BYTES = 33
"""Bytes of a share, an element of the field."""
_COEFFICIENT_BYTES = (
    48  # of pseudorandom bytes for one; modulo the prime they are uniform to 2^-127
)


def split(secret: bytes, holders: int, threshold: int, seed: bytes) -> list[bytes]:
    """Return the shares of holders 1..n: the values there of a polynomial of degree k - 1 with the secret at 0.

    The coefficients are pseudorandom in the seed, so the same seed gives the same shares.

    Args:
        secret: 32 bytes.
        holders: n.
        threshold: k, 1 to n.
        seed: 32 bytes, of this secret alone.

    Raises:
        ValueError: the secret has another length, or k is not from 1 to n.
    """
    if len(secret) != 32 or not 1 <= threshold <= holders:
        raise ValueError(
            f"Expected a secret of 32 bytes and 1 <= threshold <= holders, got {len(secret)} bytes, "
            f"threshold={threshold}, holders={holders}"
        )
    stream = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor()
    drawn = stream.update(bytes(_COEFFICIENT_BYTES * (threshold - 1)))
    starts = range(0, len(drawn), _COEFFICIENT_BYTES)
    rising = [int.from_bytes(drawn[s : s + _COEFFICIENT_BYTES], "big") % PRIME for s in starts]
    constant = int.from_bytes(secret, "big")
    shares = []
    for point in range(1, holders + 1):
        value = 0
        for coefficient in rising:
            value = (value + coefficient) * point % PRIME
        shares.append(((value + constant) % PRIME).to_bytes(SHARE_BYTES, "big"))
    return shares


def weights_at_zero(points: Sequence[int]) -> dict[int, int]:
    """Return Lagrange's weight of each point: the secret is the sum of weight times share, modulo PRIME."""
    weights = {}
    for point in points:
        top = bottom = 1
        for other in points:
            if other != point:
                top = top * other % PRIME
                bottom = bottom * (other - point) % PRIME
        weights[point] = top * pow(bottom, -1, PRIME) % PRIME
    return weights


def restore(shares: Mapping[int, bytes], weights: Mapping[int, int]) -> bytes:
    """Return the secret of 32 bytes from exactly k shares.

    Args:
        shares: by point, those of the weights.
        weights: `weights_at_zero` of these points.

    Raises:
        SumRefused: they are shares of no secret of 32 bytes.
    """
    value = sum(int.from_bytes(shares[p], "big") * w for p, w in weights.items()) % PRIME
    if value >= 2**256:
        raise SumRefused("Expected shares of a secret of 32 bytes, got shares of another value")
    return value.to_bytes(32, "big")
