"""Digests of the data that a simulated run was begun with, by which ``resume`` notices a changed file.

A digest of data lets anybody who knows all records but one test a guess of that one. So the digests are keyed, and with
their key are in a file that only its owner may read (mode 0600), among the silos' private logs; nothing publishes it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from fedllm.data.formats.records import TextDataset
from fedllm.run.folder import RunFolderError, read_json_file

DIGESTS = "silo-logs/data-digests.json"
"""File in the run folder."""
Data = Mapping[str, tuple[TextDataset, ...]]
"""Data sets by their holder's name."""


def digests(data: Data, key: bytes) -> dict[str, str]:
    """Return the keyed digest (HMAC-SHA-256, RFC 2104) of each holder's records, in their order, as hex digits."""
    found = {}
    for name, parts in data.items():
        digest = hmac.new(key, digestmod=hashlib.sha256)
        for part in parts:
            digest.update(f"{len(part)}\n".encode())
            for record in part:
                text = json.dumps(record, sort_keys=True, default=repr)
                digest.update(text.encode("ascii") + b"\n")
        found[name] = digest.hexdigest()
    return found


def same_data(folder: Path, data: Data, *, begun: bool, accept: bool) -> list[str]:
    """Compare the data with those that the run was begun with, and keep their digests.

    Args:
        folder: the run's.
        begun: whether the run has begun before.
        accept: whether other data are to be taken up.

    Returns:
        Names of holders whose data have changed, which ``accept`` took up; none else.

    Raises:
        RunFolderError: data have changed and ``accept`` is False, or the file is damaged.
    """
    path = folder / DIGESTS
    changed: list[str] = []
    if path.is_file():
        key, kept = _read(path)
        now = digests(data, key)
        changed = sorted(name for name in {*kept, *now} if kept.get(name) != now.get(name))
        if not changed:
            return []
        if not accept:
            named = ", ".join(changed[:5]) + (
                f" and {len(changed) - 5} more" if changed[5:] else ""
            )
            raise RunFolderError(
                f"Expected the data that the run {folder} was begun with, got other data of {named}: put them back, or "
                "go on with these by `fedllm resume --changed-data`"
            )
    elif begun:
        return []  # begun by a version that kept none: nothing to compare with
    else:
        key = secrets.token_bytes(32)
        now = digests(data, key)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    _write(path, {"format": "fedllm-data-digests", "key": key.hex(), "hmac-sha256": now})
    return changed


def _read(path: Path) -> tuple[bytes, dict[str, str]]:
    found = read_json_file(path)
    try:
        return bytes.fromhex(found["key"]), dict(found["hmac-sha256"])
    except (KeyError, TypeError, ValueError):
        raise RunFolderError(f"Expected a key and digests in {path}, got a damaged file") from None


def _write(path: Path, value: object) -> None:
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as stream:
        json.dump(value, stream, indent=2, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
