"""Signing a report, and telling later whether report, ledger and signature are still the same.

What is signed (Ed25519, RFC 8032) is a statement: the SHA-256 of ``report.json`` and ``report.html``,
the ledger's head (number and hash of its last row) that the report was computed from, who signed and
when. It stands with its signature in ``report.sig.json``. Since each row of the ledger holds the hash
of the row before, the head stands for all rows up to it. Of a deployed run, whose ledgers are with the silos, the
extracts that the silos signed are signed in the ledger's place (:mod:`fedllm.report.extract`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedllm.files.durable import fsync_folder, json_bytes, write_bytes
from fedllm.report.build import build
from fedllm.report.checks import Check
from fedllm.report.extract.check import (
    Trusted,
    check_extracts,
    check_signed,
    signed_extracts,
)
from fedllm.report.extract.store import INDEX
from fedllm.report.ledger_reading import read_ledger
from fedllm.report.page.render import HTML, JSON
from fedllm.run.folder import LEDGER, RunFolderError, ledger_of, read_settings
from fedllm.run.signed_report import EMPTY, SIGNATURE, require_unsigned

FORMAT = "fedllm-report-signature"
VERSION = 1
_SIGNER = re.compile(re.escape(EMPTY[: EMPTY.index(">") + 1]).encode() + rb".*?</p>", re.DOTALL)
_DOMAIN = b"fedllm report signature v1\n"
"""Goes before the signed bytes, so that a signature made for another purpose cannot serve here."""


class SignatureError(ValueError):
    """A key or a report cannot be used for signing or verifying; the message says why."""


@dataclass(frozen=True)
class Verification:
    """Result of :func:`verify_report`.

    Attributes:
        ok: every check holds.
        notes: what holds but has to be known: whose key it is was not checked, rows added since.
        statement: what was signed; None if the file cannot be read. Not to be believed unless
            the check "signature" holds.
    """

    ok: bool
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    statement: Mapping[str, Any] | None


# -- keys --------------------------------------------------------------------------------------


def generate_key(path: Path) -> tuple[Path, str]:
    """Make a key pair: the private key at ``path`` (mode 0600), the public one at ``*.pub.pem``.

    Returns:
        (file of the public key, its fingerprint).

    Raises:
        SignatureError: one of the files exists, or cannot be written.
    """
    public_path = path.with_name(f"{path.stem}.pub.pem")
    for file in (path, public_path):
        if file.exists() or file.is_symlink():
            raise SignatureError(f"Expected no file at {file}: a key is never overwritten")
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, data, mode in (
            (path, private, 0o600),
            (public_path, _pem(key.public_key()), 0o644),
        ):
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        fsync_folder(path.parent)
    except OSError as error:
        raise SignatureError(f"Cannot write the key {path}: {error}") from error
    return public_path, fingerprint(key.public_key())


def load_private_key(path: Path, password: bytes | None = None) -> Ed25519PrivateKey:
    """Read a private key in PEM.

    Raises:
        SignatureError: it is missing, damaged, no Ed25519 key, or encrypted with another password.
    """
    try:
        key = serialization.load_pem_private_key(_read(path, "private key"), password)
    except TypeError:
        raise SignatureError(
            f"Expected a password for {path}, which is encrypted (or none, if it is not)"
        ) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"Expected a private key in PEM, got {path}: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"Expected an Ed25519 key, got another kind in {path}")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key in PEM.

    Raises:
        SignatureError: it is missing, damaged, or no Ed25519 key.
    """
    try:
        key = serialization.load_pem_public_key(_read(path, "public key"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"Expected a public key in PEM, got {path}: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"Expected an Ed25519 key, got another kind in {path}")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return SHA-256 of the raw public key, as hex digits."""
    return sha256(key.public_bytes_raw()).hexdigest()


# -- signing -----------------------------------------------------------------------------------


def sign_report(
    folder: Path,
    key: Ed25519PrivateKey,
    *,
    name: str = "",
    role: str = "",
    trusted: Trusted | None = None,
) -> dict[str, Any]:
    """Sign the report of a run folder and write ``report.sig.json`` next to it.

    The page is given its signer's name, role and key before; whether the signature holds, only ``fedllm verify`` tells.

    Args:
        name, role: who signs; part of what is signed.
        trusted: of a deployed run, the node keys that its extracts are verified with.

    Returns:
        The statement that was signed.

    Raises:
        SignatureError: there is no report, it is damaged, or the ledger is not (or no longer) the one
            that it was computed from: then make the report again, and read it, before signing.
    """
    folder = folder.expanduser().resolve()
    try:
        require_unsigned(folder, f"to sign it anew, first move {SIGNATURE} elsewhere")
    except RunFolderError as error:
        raise SignatureError(str(error)) from None
    files = {file: _read(folder / file, "report") for file in (JSON, HTML)}
    report = _report(files[JSON], folder / JSON)
    digest = sha256(files[JSON]).hexdigest()
    if digest not in files[HTML].decode("utf-8", "replace"):
        raise SignatureError(f"Expected {HTML} made of {JSON}, got two that do not belong together")
    stood_on = _stood_on(folder, report, trusted or Trusted())
    time = datetime.now(UTC).isoformat(timespec="seconds")
    line = _signer_line(name, role, fingerprint(key.public_key()), time)
    files[HTML] = _with_signer(files[HTML], line)
    statement = {
        "format": FORMAT,
        "version": VERSION,
        "run_id": report["run"]["run_id"],
        "headline": report["headline"],
        "files": {file: sha256(data).hexdigest() for file, data in files.items()},
        **stood_on,
        "signer": {"name": name, "role": role},
        "time": time,
    }
    signed = {
        "statement": statement,
        "public_key": key.public_key().public_bytes_raw().hex(),
        "signature": key.sign(_signed_bytes(statement)).hex(),
    }
    try:
        write_bytes(folder / HTML, files[HTML])
        write_bytes(folder / SIGNATURE, json_bytes(signed))
    except OSError as error:
        raise SignatureError(f"Cannot write {folder / SIGNATURE}: {error}") from error
    return statement


def _signer_line(name: str, role: str, digest: str, time: str) -> str:
    """Return the page's line about its signer."""
    who = escape(", ".join(part for part in (name, role) if part) or "an unnamed signer")
    return (
        f'<p class="soft" id="signer">Signed by <strong>{who}</strong> on {time}, with the key <code>{digest}</code>. '
        "This line proves nothing: <code>fedllm verify RUN --public-key KEY.pub.pem</code>, with the signer's public key "
        "from a trusted source, tells whether the signature holds.</p>"
    )


def _with_signer(page: bytes, line: str) -> bytes:
    """Return the page with the line in the place of the one about no signer, or an earlier one."""
    found = _SIGNER.findall(page)
    if len(found) != 1:
        raise SignatureError(
            f"Expected {HTML} with one line about its signer, got {len(found)}: make the report again"
        )
    return page.replace(found[0], line.encode("utf-8"))


def _stood_on(folder: Path, report: Mapping[str, Any], trusted: Trusted) -> dict[str, Any]:
    """Return the statement's record of the report's sources: the ledger's head, or the extracts.

    Raises:
        SignatureError: it is not there, or no longer that.
    """
    if report.get("vouching") is not None:
        checks, _ = check_extracts(folder, report, trusted, build)
        failed = [check.text for check in checks if not check.ok]
        if failed:
            raise SignatureError(
                f"Expected the extracts that the report was made from: {' '.join(failed)}"
            )
        extracts = signed_extracts(report)
        if not any(extracts.values()):
            raise SignatureError("Expected a silo that vouches for its ledger: nothing to sign")
        return {"version": 2, "ledger": None, "extracts": extracts}
    ledger = report["ledger"]
    head = (ledger["last_row"], ledger["last_hash"])
    if head[0] is None or head[1] is None:
        raise SignatureError(
            "Expected a report made from a ledger, got one without: nothing to sign"
        )
    found = _ledger_check(ledger_path(folder), head)[0]
    if not found.ok:
        raise SignatureError(f"Expected the ledger that the report was made from: {found.text}")
    return {"ledger": {"file": ledger["file"], "rows": head[0], "hash": head[1]}}


# -- verifying ---------------------------------------------------------------------------------


def verify_report(
    folder: Path,
    public_key: Ed25519PublicKey | None = None,
    ledger: Path | None = None,
    trusted: Trusted | None = None,
) -> Verification:
    """Verify a run's signature against its report and ledger.

    Args:
        public_key: the signer's, from a source that is trusted; None takes the one in the signature
            file, which shows that nothing was altered by others, not who signed.
        ledger: the ledger's file; by default as the run's settings say. Of a deployed run: one silo's own.
        trusted: of a deployed run, what its extracts are verified with.

    Raises:
        SignatureError: there is no run folder.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise SignatureError(f"Expected a run folder, found no folder {folder}")
    try:
        statement, embedded, signature = _read_signature(folder / SIGNATURE)
    except SignatureError as error:
        found, notes = _extract_checks(folder, ledger, trusted)
        unsigned = Check("signature-file", False, str(error))
        return Verification(False, (unsigned, *found), tuple(notes), None)
    notes = []
    checks = [Check("signature-file", True, f"{SIGNATURE} can be read.")]
    if public_key is None:
        notes.append(
            f"The key {fingerprint(embedded)} is taken from the signature file itself: this shows "
            "that nothing was altered since by anybody without that key, not whose key it is. Give "
            "the signer's public key to check that."
        )
    else:
        same = fingerprint(public_key) == fingerprint(embedded)
        text = (
            "The report was signed with the key that was given."
            if same
            else f"WRONG KEY: signed with the key {fingerprint(embedded)}, given was "
            f"{fingerprint(public_key)}."
        )
        checks.append(Check("key", same, text))
    # With the embedded key, so that an altered statement is told apart from a wrong key.
    checks.append(_signature_check(embedded, signature, statement))
    checks += [_file_check(folder / name, statement["files"][name]) for name in (JSON, HTML)]
    if statement["ledger"] is None:
        checks += check_signed(folder, statement["extracts"])
        found, more = _extract_checks(folder, ledger, trusted)
        if not found:
            found = [Check("extracts", False, f"NO EXTRACTS: {JSON} names none.")]
        checks, notes = [*checks, *found], [*notes, *more]
        return Verification(all(c.ok for c in checks), tuple(checks), tuple(notes), statement)
    signed_head = (statement["ledger"]["rows"], statement["ledger"]["hash"])
    check, added = _ledger_check(ledger or ledger_path(folder), signed_head)
    checks.append(check)
    if added:
        notes.append(
            f"{added} rows were added to the ledger after the report: their cost is not in the "
            "signed numbers. Make a new report for the current spending."
        )
    return Verification(all(c.ok for c in checks), tuple(checks), tuple(notes), statement)


def _extract_checks(
    folder: Path, ledger: Path | None, trusted: Trusted | None
) -> tuple[list[Check], list[str]]:
    """Return checks of a deployed run's extracts, and notes; none for another run, or without a report."""
    if not (folder / INDEX).exists():
        return [], []
    try:
        report = _report(_read(folder / JSON, "report"), folder / JSON)
        if report.get("vouching") is None:
            return [], []
        given = trusted or Trusted()
        return check_extracts(folder, report, replace(given, ledger=ledger), build)
    except SignatureError as error:
        return [Check("extracts", False, f"NO REPORT: {error}")], []


def ledger_path(folder: Path) -> Path:
    """Return the ledger of a run folder: as its settings say, or the one within where they are lost."""
    try:
        return ledger_of(read_settings(folder), folder)
    except RunFolderError:
        return folder / LEDGER


def _signature_check(key: Ed25519PublicKey, signature: bytes, statement: Any) -> Check:
    try:
        key.verify(signature, _signed_bytes(statement))
    except InvalidSignature:
        text = "ALTERED SIGNATURE: the key did not sign this statement."
        return Check("signature", False, text)
    signer = statement["signer"]
    who = (
        ", ".join(part for part in (signer["name"], signer["role"]) if part) or "an unnamed signer"
    )
    return Check("signature", True, f"The statement was signed by {who} at {statement['time']}.")


def _file_check(path: Path, digest: str) -> Check:
    try:
        data = path.read_bytes()
    except OSError as error:
        return Check(path.name, False, f"MISSING REPORT: {path.name} cannot be read: {error}.")
    if sha256(data).hexdigest() != digest:
        text = f"ALTERED REPORT: {path.name} is not the file that was signed (or was made again)."
        return Check(path.name, False, text)
    return Check(path.name, True, f"{path.name} is the file that was signed.")


def _ledger_check(path: Path, head: tuple[int, str]) -> tuple[Check, int]:
    """Return True if the ledger is whole and continues from the signed head; how many rows were added."""
    _, found, problem = read_ledger(path, head)
    if found is None:
        return Check("ledger", False, f"NO LEDGER: {path.name}: {problem}."), 0
    if not found.ok or problem:
        listed = "; ".join([*found.problems[:3], *([problem] if problem else [])])
        return Check("ledger", False, f"ALTERED LEDGER: {path.name}: {listed}."), 0
    added = found.head[0] - head[0]
    text = f"The ledger is whole and holds the {head[0]} rows that were signed, unaltered."
    return Check("ledger", True, text), added


def _read_signature(path: Path) -> tuple[dict[str, Any], Ed25519PublicKey, bytes]:
    data = _read(path, "signature")
    try:
        found = json.loads(data)
        statement = found["statement"]
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(found["public_key"]))
        signature = bytes.fromhex(found["signature"])
        deployed = statement["ledger"] is None
        if (statement["format"], statement["version"]) != (FORMAT, VERSION + deployed):
            raise ValueError(f"format {statement['format']!r}, version {statement['version']!r}")
        texts = [statement["files"][name] for name in (JSON, HTML)]
        texts += [statement["time"]]
        if not deployed:
            texts += [statement["ledger"]["hash"]]
        texts += [statement["signer"]["name"], statement["signer"]["role"]]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a value is no text")
        if not deployed and type(statement["ledger"]["rows"]) is not int:
            raise ValueError("the number of rows is no whole number")
        for item in statement["extracts"].values() if deployed else ():
            if item is not None and not isinstance(item["sha256"], str):
                raise ValueError("an extract's digest is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SignatureError(
            f"DAMAGED SIGNATURE: expected {FORMAT} version {VERSION} in {path.name}: {error!r}"
        ) from None
    return statement, key, signature


def _report(data: bytes, path: Path) -> dict[str, Any]:
    try:
        report = json.loads(data)
        if report["format"] != "fedllm-report" or not isinstance(report["ledger"], dict):
            raise ValueError("another format")
        ledger = report["ledger"]
        _ = (ledger["last_row"], ledger["last_hash"], ledger["file"])
        _ = (report["run"]["run_id"], report["headline"])
    except (ValueError, KeyError, TypeError) as error:
        raise SignatureError(f"Expected a report in {path}: {error!r}") from None
    return dict(report)


def _signed_bytes(statement: Any) -> bytes:
    return _DOMAIN + json.dumps(
        statement, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def _pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = "there is none" if isinstance(error, FileNotFoundError) else str(error)
        raise SignatureError(f"Expected a {what} at {path}: {reason}") from None
