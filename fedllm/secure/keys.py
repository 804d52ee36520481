"""Derive the keys of secure sums: X25519 pairs from seeds, and everything else by HKDF-SHA256.

Every derivation names its purpose and all that it is for (run and plan by the roster's digest, session, names) in HKDF's `info`, with
lengths before the parts, so that no two purposes share a key.
"""

from __future__ import annotations

from hashlib import sha256

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedllm.secure.errors import SumRefused

KEY_BYTES = 32
"""Bytes of every secret, seed and public key."""
_PROTOCOL = b"fedllm secure sum v1"


def joined(*parts: str | bytes | int) -> bytes:
    """Return the parts as one text of bytes that tells where each begins (its length in 8 bytes goes before it)."""
    data = b""
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        data += len(raw).to_bytes(8, "big") + raw
    return data


def digest(*parts: str | bytes | int) -> bytes:
    """Return the SHA-256 (32 bytes) of `joined` parts."""
    return sha256(_PROTOCOL + joined(*parts)).digest()


def derive(secret: bytes, purpose: str, *parts: str | bytes | int) -> bytes:
    """Return 32 bytes by HKDF-SHA256 (RFC 5869) from a secret, for one purpose and the parts it is for."""
    return HKDF(hashes.SHA256(), KEY_BYTES, _PROTOCOL, joined(purpose, *parts)).derive(secret)


def public_key(private: bytes) -> bytes:
    """Return the X25519 public key (RFC 7748) of a private key of 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes) -> bytes:
    """Return the X25519 secret of two parties.

    Raises:
        SumRefused: the public key is of small order, so that the secret would be known to everybody.
    """
    try:
        own = X25519PrivateKey.from_private_bytes(private)
        return own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise SumRefused(f"Expected an X25519 key of full order, got {public.hex()}") from None
