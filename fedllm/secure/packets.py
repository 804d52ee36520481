"""Seal a silo's shares for one peer, so that the server that carries them cannot read or change them."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedllm.secure import keys, shamir
from fedllm.secure.errors import SumRefused

_NONCE = bytes(12)  # every key seals one text: it is for one sender, receiver, session and roster


def seal(
    agreed: bytes, roster: bytes, session: int, sender: str, receiver: str, text: bytes
) -> bytes:
    """Encrypt and authenticate a text by AES-256-GCM under the key of this sender, receiver, session and roster.

    Args:
        agreed: X25519 secret of the long-term keys of the two silos.
        roster: its digest.
    """
    key, said = _key(agreed, roster, session, sender, receiver)
    return AESGCM(key).encrypt(_NONCE, text, said)


def unseal(
    agreed: bytes, roster: bytes, session: int, sender: str, receiver: str, packet: bytes
) -> bytes:
    """Return the text of a packet.

    Raises:
        SumRefused: it was not sealed by this sender, for this receiver, session and roster.
    """
    key, said = _key(agreed, roster, session, sender, receiver)
    try:
        return AESGCM(key).decrypt(_NONCE, packet, said)
    except (InvalidTag, ValueError, TypeError):
        raise SumRefused(
            f"Expected a packet of silo {sender!r} for silo {receiver!r} in session {session} of this roster, got another"
        ) from None


def packed(public: bytes, key_share: bytes, seed_share: bytes) -> bytes:
    """Return the text of a packet: a session's public key, a share of its private key and one of the self-mask's seed."""
    return public + key_share + seed_share


def unpacked(text: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the parts of a packet's text; SumRefused if it has another length."""
    first, second = keys.KEY_BYTES, keys.KEY_BYTES + shamir.SHARE_BYTES
    if len(text) != second + shamir.SHARE_BYTES:
        raise SumRefused(
            f"Expected {second + shamir.SHARE_BYTES} bytes in a packet, got {len(text)}"
        )
    return text[:first], text[first:second], text[second:]


def _key(
    agreed: bytes, roster: bytes, session: int, sender: str, receiver: str
) -> tuple[bytes, bytes]:
    where = (roster, session, sender, receiver)
    return keys.derive(agreed, "packet", *where), keys.joined("packet", *where)
