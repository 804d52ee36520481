"""The server's memory of each silo's ledger across runs: the last signed head, returned with each task.

One small file a silo. The head is signed by the silo, so that the silo believes it: a server can neither forge one nor
make an older one newer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fedllm.files.durable import json_bytes, write_bytes
from fedllm.report.extract.keys import HEAD, NodeKey
from fedllm.report.extract.statement import LONGEST_HEAD, ExtractError, Head, parse
from fedllm.report.extract.store import Signed, path_of

_FORMAT = "fedllm-kept-head"


@dataclass(frozen=True)
class Kept:
    """The last head of a silo's ledger, and the run whose reply brought it."""

    head: Head
    signed: Signed
    run: str


def verified_head(signed: Signed, silo: str, key: NodeKey) -> Head:
    """Verify a signed head, and only then read it.

    Raises:
        ExtractError: another key or text was signed, or it is of another silo.
    """
    if len(signed.text) > LONGEST_HEAD or not key.verifies(HEAD, signed.text, signed.signature):
        raise ExtractError(f"the head of its ledger is not signed with {key.fingerprint}")
    head = parse(Head, signed.text)
    if head.silo != silo:
        raise ExtractError(f"the head is of another silo's ledger, {head.silo!r}")
    return head


def newer(head: Head, before: Head) -> bool:
    """Return True if a head continues from another: as many rows and later, or more, or it was set aside deliberately.

    Raises:
        ExtractError: it was made later, and cannot continue from it: the ledger was set back, or two ledgers of the
            same silo are in use.
    """
    mine, old = head.ledger, before.ledger
    if mine.rows > old.rows:
        return True
    if mine == old:
        return head.made >= before.made
    if old in head.set_aside and head.made > before.made:
        return True
    if head.made > before.made:
        raise ExtractError(
            f"its ledger holds {mine.rows} rows that end in {mine.hash[:16]}, after it had vouched for {old.rows} that "
            f"end in {old.hash[:16]}: it was set back, or two ledgers are in use"
        )
    return False


def write_kept(folder: Path, kept: Kept) -> None:
    """Keep a head instead of the silo's last one."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"format": _FORMAT, "run": kept.run, **vars(kept.signed)}
    write_bytes(path_of(folder, kept.head.silo), json_bytes(plain))


def read_kept(folder: Path) -> dict[str, Kept]:
    """Return all heads in a folder, by silo; a file that is damaged is left out. Signatures are not verified."""
    found = {}
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            if tree["format"] != _FORMAT:
                continue
            signed = Signed(str(tree["text"]), str(tree["signature"]))
            head = parse(Head, signed.text)
            found[head.silo] = Kept(head, signed, str(tree["run"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return found
