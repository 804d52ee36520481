"""Approved app bundles of a node: a list of SHA-256 digests that the silo keeps.

Flower ships the app's code to the nodes with each run, so a hostile server could ship a client without
any of the silo's checks. A node started with :mod:`client.executor.executor` therefore unpacks and imports a
bundle only where the digest of its bytes is in this list.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import tomllib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.executor.bundle_contents import MANIFEST, PACKAGES, PROJECT, BundleError, read_bundle
from fedllm.files.durable import json_bytes, write_bytes

CLIENT_APP = "client.app:app"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ApprovalError(ValueError):
    """A list of approved bundles, a bundle or a digest cannot be used."""


@dataclass(frozen=True)
class Approval:
    """One approved bundle.

    Attributes:
        sha256: of the bundle's bytes.
        app: publisher, name and version that the bundle gives itself; empty where only its digest was known.
        time: when it was approved, UTC.
        note: the silo's own words.
    """

    sha256: str
    app: str = ""
    time: str = ""
    note: str = ""


def read_approved(path: str | Path) -> dict[str, Approval]:
    """Return the approved bundles by digest; none if there is no such file.

    Raises:
        ApprovalError: the file is no such list. Nothing is approved then.
    """
    file = Path(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        entries = [Approval(**entry) for entry in found["approved"]]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ApprovalError(f"Expected a list of approved bundles in {file}: {error}") from None
    for entry in entries:
        if not _DIGEST.fullmatch(str(entry.sha256)):
            raise ApprovalError(
                f"Expected SHA-256 digests of 64 hexadecimal digits in {file}, got {entry.sha256!r}"
            )
    return {entry.sha256: entry for entry in entries}


def is_approved(path: str | Path, bundle: bytes) -> bool:
    """Return True if these very bytes are approved; what anybody says of their digest is not asked.

    Raises:
        ApprovalError: as :func:`read_approved`.
    """
    return digest_of(bundle) in read_approved(path)


def approve(path: str | Path, sha256: str, *, app: str = "", note: str = "") -> Approval:
    """Add a bundle to the list, durably.

    Raises:
        ApprovalError: no digest, or as :func:`read_approved`.
    """
    digest = sha256.strip().lower()
    if not _DIGEST.fullmatch(digest):
        raise ApprovalError(
            f"Expected a bundle, or its SHA-256 of 64 hexadecimal digits, got {sha256!r}"
        )
    entries = read_approved(path)
    time = datetime.now(UTC).isoformat(timespec="seconds")
    entries[digest] = Approval(digest, app, time, note)
    _write(Path(path), entries)
    return entries[digest]


def revoke(path: str | Path, sha256: str) -> None:
    """Take a bundle off the list, durably; what runs of it ends with the next task.

    Raises:
        ApprovalError: it is not on the list, or as :func:`read_approved`.
    """
    entries = read_approved(path)
    digest = sha256.strip().lower()
    if digest not in entries:
        raise ApprovalError(f"Expected an approved bundle, got {sha256!r}, which is not in {path}")
    del entries[digest]
    _write(Path(path), entries)


def digest_of(bundle: bytes) -> str:
    """Return hexadecimal SHA-256, by which Flower names a bundle too."""
    return hashlib.sha256(bundle).hexdigest()


def app_name(bundle: bytes) -> str:
    """Return a bundle's declared name: ``publisher/name version``. Reads one file in it, runs nothing.

    Raises:
        ApprovalError: it is no Flower app bundle.
    """
    tree = _project(_files(bundle))
    try:
        app, project = tree["tool"]["flwr"]["app"], tree["project"]
        return f"{app['publisher']}/{project['name']} {project['version']}"
    except (KeyError, TypeError) as error:
        raise ApprovalError(f"Expected a Flower app bundle, got something else: {error}") from None


def differences(bundle: bytes) -> list[str]:
    """Return the differences of a bundle from the packages installed here, one line a file of any kind; run nothing.

    Raises:
        ApprovalError: it is no bundle, or holds a file that none may hold.
    """
    app_name(bundle)
    files = _files(bundle)
    app = _project(files)["tool"]["flwr"]["app"]
    client = app.get("components", {}).get("clientapp")
    lines = (
        [] if client == CLIENT_APP else [f"changed: {PROJECT} runs {client!r}, not {CLIENT_APP}"]
    )
    files = {name: data for name, data in files.items() if name not in (PROJECT, MANIFEST)}
    installed = _installed()
    lines += [f"added: {name}" for name in sorted(set(files) - set(installed))]
    for name in sorted(set(files) & set(installed)):
        if files[name] != installed[name].read_bytes():
            lines.append(f"changed: {name}")
    shipped = {name.partition("/")[0] for name in files}
    absent = sorted(name for name in set(installed) - set(files) if name.endswith(".py"))
    lines += [f"absent: {name}" for name in absent if name.partition("/")[0] in shipped]
    return lines


def _files(bundle: bytes) -> dict[str, bytes]:
    try:
        return read_bundle(bundle)
    except BundleError as error:
        raise ApprovalError(str(error)) from None


def _project(files: dict[str, bytes]) -> dict[str, Any]:
    try:
        return tomllib.loads(files[PROJECT].decode("utf-8"))
    except ValueError as error:
        raise ApprovalError(f"Expected a Flower app bundle, got something else: {error}") from None


def _installed() -> dict[str, Path]:
    files: dict[str, Path] = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            root = Path(place)
            files |= {
                f"{package}/{path.relative_to(root).as_posix()}": path
                for path in root.rglob("*")
                if path.is_file() and "__pycache__" not in path.parts
            }
    return files


def _write(path: Path, entries: dict[str, Approval]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json_bytes({"approved": [asdict(entry) for entry in entries.values()]}))
