"""Sign texts with a node's key and verify them: ECDSA (FIPS 186-5) with SHA-384 on the key's curve.

A node's key is the one that Flower's SuperNode authenticates with (``node.key``, made by ``fedllm deploy`` or
``ssh-keygen -t ecdsa -b 384``), so the server knows its public half already. Each kind of text has a domain that
goes before the signed bytes: a signature made for one kind, or by Flower for a request, cannot serve for another.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

EXTRACT = b"fedllm ledger extract v1\n"
"""Domain of extracts."""
HEAD = b"fedllm ledger head v1\n"
"""Domain of heads."""
SUM = b"fedllm secure sum v1\n"
"""Domain of introductions to secure sums."""
_LONGEST = 300
"""Characters of a signature in hexadecimal at most: one on P-521 in DER has 278."""


class KeyProblem(ValueError):
    """A key or a signature cannot be used; the message names the file and what was expected."""


@dataclass(frozen=True)
class NodeKey:
    """A node's public key, in OpenSSH's form without a comment: ``ecdsa-sha2-nistp384 AAAA...``."""

    line: str

    @property
    def fingerprint(self) -> str:
        """The fingerprint in the format of ``ssh-keygen -l``: ``SHA256:`` and the base64 of the key's SHA-256."""
        digest = sha256(base64.b64decode(self.line.split()[1])).digest()
        return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")

    def verifies(self, domain: bytes, text: str, signature: str) -> bool:
        """Return True if the signature (hexadecimal DER) is this key's, of this text in this domain."""
        if len(signature) > _LONGEST:
            return False
        try:
            key = serialization.load_ssh_public_key(self.line.encode("ascii"))
            assert isinstance(key, ec.EllipticCurvePublicKey)
            data = domain + text.encode("utf-8")
            key.verify(bytes.fromhex(signature), data, ec.ECDSA(hashes.SHA384()))
        except (InvalidSignature, ValueError):
            return False
        return True


class SigningKey:
    """A node's private key."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        """Keep the key."""
        self._key = key
        self.public = _node_key(key.public_key())

    def sign(self, domain: bytes, text: str) -> str:
        """Return the signature of a text in a domain, as hexadecimal DER."""
        data = domain + text.encode("utf-8")
        return self._key.sign(data, ec.ECDSA(hashes.SHA384())).hex()


def load_signing_key(path: Path) -> SigningKey:
    """Read a node's private key, in OpenSSH's format or as PEM, not encrypted.

    Raises:
        KeyProblem: it is missing, damaged, encrypted, or not on a NIST curve.
    """
    data = _read(path, "a node's private key")
    ssh = b"OPENSSH PRIVATE KEY" in data
    load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
    try:
        key = load(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyProblem(f"Expected a node's private key in {path}: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyProblem(f"Expected an ECDSA key in {path}, got another kind")
    return SigningKey(key)


def load_node_key(path: Path) -> NodeKey:
    """Read a node's public key from an OpenSSH public key file (``nodes/NAME.pub``).

    Raises:
        KeyProblem: it is missing, damaged, or not on a NIST curve.
    """
    return node_key_of(_read(path, "a node's public key").decode("utf-8", "replace"), str(path))


def node_key_of(line: str, where: str = "a line") -> NodeKey:
    """Read a node's public key from a line in OpenSSH's form; a comment in it is dropped.

    Raises:
        KeyProblem: it is no such line, or the key is not on a NIST curve.
    """
    try:
        key = serialization.load_ssh_public_key(line.encode("utf-8"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyProblem(f"Expected an OpenSSH public key in {where}: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise KeyProblem(f"Expected an ECDSA key in {where}, got another kind")
    return _node_key(key)


def _node_key(key: ec.EllipticCurvePublicKey) -> NodeKey:
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return NodeKey(line.decode("ascii"))


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = "there is none" if isinstance(error, FileNotFoundError) else str(error)
        raise KeyProblem(f"Expected {what} at {path}: {reason}") from None
