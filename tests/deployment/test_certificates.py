"""Keys and certificates: what they are for, who may read them, when they end."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from server.deployment import certificates
from server.deployment.folder import DeploymentError


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, Path]:
    paths = (tmp_path / "ca.pem", tmp_path / "ca.key")
    certificates.make_authority("test", *paths)
    return paths


def make(tmp_path: Path, authority: tuple[Path, Path], name: str = "x", **options: object) -> Path:
    path = tmp_path / f"{name}.pem"
    certificates.make_certificate(
        *authority,
        path,
        tmp_path / f"{name}.key",
        name=name,
        **options,  # type: ignore[arg-type]
    )
    return path


def test_private_keys_are_their_owners_alone(tmp_path: Path, authority: tuple[Path, Path]) -> None:
    make(tmp_path, authority)
    certificates.make_node_key(tmp_path / "node.key", tmp_path / "node.pub")
    certificates.make_secret(tmp_path / "secret")
    for name in ("ca.key", "x.key", "node.key", "secret"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name


def test_names_and_purpose(tmp_path: Path, authority: tuple[Path, Path]) -> None:
    hosts = ("fed.example.org", "10.1.2.3", "::1")
    server = x509.load_pem_x509_certificate(
        make(tmp_path, authority, "server", hosts=hosts).read_bytes()
    )
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.1.2.3", "::1"]
    operator = x509.load_pem_x509_certificate(make(tmp_path, authority, "operator").read_bytes())
    for found, purpose in ((server, "serverAuth"), (operator, "clientAuth")):
        usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [oid._name for oid in usage] == [purpose]
        limits = found.extensions.get_extension_for_class(x509.BasicConstraints).value
        assert not limits.ca


def test_node_key_is_what_ssh_keygen_makes_and_reads(tmp_path: Path) -> None:
    certificates.make_node_key(tmp_path / "node.key", tmp_path / "node.pub")
    private = serialization.load_ssh_private_key((tmp_path / "node.key").read_bytes(), None)
    expected = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert certificates.read_node_key(tmp_path / "node.pub") == expected
    assert private.key_size == 384  # type: ignore[union-attr]


def test_other_kinds_of_keys_are_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    public = ed25519.Ed25519PrivateKey.generate().public_key()
    path = tmp_path / "node.pub"
    path.write_bytes(
        public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    with pytest.raises(DeploymentError, match="ecdsa"):
        certificates.read_node_key(path)
    path.write_text("nonsense")
    with pytest.raises(DeploymentError, match="OpenSSH public key"):
        certificates.read_node_key(path)


def test_check_tells_ended_ending_foreign_and_lacking(
    tmp_path: Path, authority: tuple[Path, Path]
) -> None:
    ca = authority[0]
    good = make(tmp_path, authority, "good", hosts=("a.org",))
    assert certificates.check(ca, good, ("a.org",)) == []
    with pytest.raises(DeploymentError, match=r"Expected b\.org in .*holds a\.org"):
        certificates.check(ca, good, ("a.org", "b.org"))
    soon = make(tmp_path, authority, "soon", hosts=("a.org",), days=10)
    assert "ends in 10 days" in certificates.check(ca, soon)[0]
    ended = make(tmp_path, authority, "ended", hosts=("a.org",), days=-1)
    with pytest.raises(DeploymentError, match=r"ended on .*deploy renew"):
        certificates.check(ca, ended)
    other = (tmp_path / "other.pem", tmp_path / "other.key")
    certificates.make_authority("test", *other)
    with pytest.raises(DeploymentError, match="signed by"):
        certificates.check(other[0], good)


def test_no_certificate_outlives_its_authority(
    tmp_path: Path, authority: tuple[Path, Path]
) -> None:
    with pytest.raises(DeploymentError, match="ends before its authority"):
        make(tmp_path, authority, days=certificates.AUTHORITY_DAYS + 1)


def test_an_authority_with_anothers_key_signs_nothing(
    tmp_path: Path, authority: tuple[Path, Path]
) -> None:
    other = (tmp_path / "other.pem", tmp_path / "other.key")
    certificates.make_authority("test", *other)
    with pytest.raises(DeploymentError, match="got another"):
        make(tmp_path, (authority[0], other[1]))
