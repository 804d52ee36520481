"""Certificates and keys of a deployment, made by the ``cryptography`` package.

One certificate authority of the deployment's own signs the server's certificate and the operator's.
They cannot stand in for each other: the server's may only serve, the operator's only call
(extended key usage). Nodes have no certificates but keys, which the server knows each by its public
half; so a node is let in, or out, without the authority.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.deployment.folder import DeploymentError, is_address

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 365
WARN_DAYS = 30
"""A certificate that ends within so many days is warned of."""
LOOPBACK = ("localhost", "127.0.0.1")
"""In the server's certificate as well: its own programs reach each other over loopback, with TLS."""


@dataclass(frozen=True)
class Validity:
    """Validity period of a certificate (UTC)."""

    since: datetime
    until: datetime

    @property
    def days_left(self) -> float:
        """Days until it ends; negative when it has."""
        return (self.until - datetime.now(UTC)) / timedelta(days=1)


def make_authority(
    name: str, certificate: Path, key: Path, *, days: float = AUTHORITY_DAYS
) -> None:
    """Write a new certificate authority: its certificate, and its private key with mode 0600."""
    private = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
    public = private.public_key()
    built = (
        _builder(subject, subject, public, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(private, hashes.SHA384())
    )
    _write(certificate, built.public_bytes(serialization.Encoding.PEM))
    write_secret(key, _pem(private))


def make_certificate(
    authority: Path,
    authority_key: Path,
    certificate: Path,
    key: Path,
    *,
    name: str,
    hosts: Sequence[str] = (),
    days: float = CERTIFICATE_DAYS,
) -> None:
    """Write a new key (mode 0600) and its certificate, signed by the authority.

    Args:
        name: the certificate's common name.
        hosts: DNS names and IP addresses of a server; empty makes a caller's certificate (operator).
        days: how long it is valid.

    Raises:
        DeploymentError: the authority cannot be read, its key is not its own, or it ends before.
    """
    issuer, issuer_key = _load_authority(authority, authority_key)
    until = datetime.now(UTC) + timedelta(days=days)
    if until > issuer.not_valid_after_utc:
        raise DeploymentError(
            f"Expected a certificate that ends before its authority "
            f"({issuer.not_valid_after_utc:%Y-%m-%d}), got days={days:g}"
        )
    private = ec.generate_private_key(ec.SECP384R1())
    public = private.public_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        _builder(subject, issuer.subject, public, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if hosts:
        alternatives: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address(host)) if is_address(host) else x509.DNSName(host)
            for host in dict.fromkeys(hosts)
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    built = builder.sign(issuer_key, hashes.SHA384())
    # The key first: a certificate without its key is noticed, an old one with a new key is not.
    write_secret(key, _pem(private))
    _write(certificate, built.public_bytes(serialization.Encoding.PEM))


def make_node_key(private: Path, public: Path) -> None:
    """Write a node's key pair in OpenSSH's format (as ``ssh-keygen -t ecdsa -b 384`` makes it).

    Args:
        private: stays on the node; mode 0600.
        public: what the server knows the node by.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    write_secret(
        private,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ),
    )
    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    _write(public, line + b"\n")


def read_node_key(path: Path) -> bytes:
    """Return a node's public key as Flower registers it.

    Raises:
        DeploymentError: the file is no OpenSSH public key on a NIST curve.
    """
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DeploymentError(f"Expected an OpenSSH public key in {path}: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise DeploymentError(
            f"Expected an ECDSA key (`ssh-keygen -t ecdsa -b 384`) in {path}, got another kind"
        )
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def make_secret(path: Path) -> None:
    """Write 32 random bytes as text, mode 0600."""
    write_secret(path, secrets.token_hex(32).encode("ascii"))


def validity(certificate: Path) -> Validity:
    """Return a certificate's period of validity.

    Raises:
        DeploymentError: it cannot be read.
    """
    found = _read(certificate)
    return Validity(found.not_valid_before_utc, found.not_valid_after_utc)


def serial(certificate: Path) -> str:
    """Return a certificate's serial number as nginx writes it: hexadecimal, whole bytes.

    Raises:
        DeploymentError: it cannot be read.
    """
    number = _read(certificate).serial_number
    return number.to_bytes((number.bit_length() + 7) // 8, "big").hex().upper()


def check(authority: Path, certificate: Path, hosts: Sequence[str] = ()) -> list[str]:
    """Return warnings for the operator about a certificate, before its use.

    Returns:
        Warnings: it ends soon.

    Raises:
        DeploymentError: it has ended, is of another authority, or lacks one of the ``hosts``.
    """
    found, issuer = _read(certificate), _read(authority)
    try:
        found.verify_directly_issued_by(issuer)
    except Exception:
        raise DeploymentError(
            f"Expected {certificate} to be signed by {authority}, it is not"
        ) from None
    warnings = []
    for path in (certificate, authority):
        left = validity(path).days_left
        if left <= 0:
            raise DeploymentError(
                f"Expected a valid certificate, {path} ended on {validity(path).until:%Y-%m-%d %H:%M} "
                f"UTC; `fedllm deploy renew` makes a new one"
            )
        if left < WARN_DAYS:
            warnings.append(
                f"{path.name} ends in {left:.0f} days ({validity(path).until:%Y-%m-%d}); "
                f"`fedllm deploy renew` makes a new one"
            )
    if hosts:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        known = {str(n) for n in names.get_values_for_type(x509.DNSName)}
        known |= {str(n) for n in names.get_values_for_type(x509.IPAddress)}
        missing = [host for host in hosts if host not in known]
        if missing:
            raise DeploymentError(
                f"Expected {', '.join(missing)} in {certificate}, which holds "
                f"{', '.join(sorted(known))}; `fedllm deploy renew` makes a new one"
            )
    return warnings


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, from its first byte on."""
    partial = path.with_name(f".{path.name}.tmp")
    partial.unlink(missing_ok=True)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        # Clocks differ by minutes; one of a negative validity (tests) must begin before it ends.
        .not_valid_before(now - timedelta(minutes=10) + min(timedelta(0), timedelta(days=days)))
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _load_authority(
    certificate: Path, key: Path
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    found = _read(certificate)
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise DeploymentError(f"Expected the authority's private key in {key}: {error}") from None
    if (
        not isinstance(private, ec.EllipticCurvePrivateKey)
        or private.public_key() != found.public_key()
    ):
        raise DeploymentError(f"Expected the private key of {certificate} in {key}, got another")
    return found, private


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DeploymentError(f"Expected a certificate (PEM) in {path}: {error}") from None


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, data: bytes) -> None:
    from fedllm.files.durable import write_bytes

    write_bytes(path, data)
