"""The chain of a ledger's rows: each holds the SHA-256 of the row before it and of its own content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from json.encoder import encode_basestring_ascii as json_text
from typing import Any

from privacy.ledger_entry import canonical_json, parse_views

GENESIS = "0" * 64

_BODY = (  # canonical_json of a row, written out: three times as fast
    '{"details":%s,"id":%d,"key":%s,"party":%s,"purpose":%s,"round":%d,"run":%s,"time":%s,'
    '"unit":%s,"views":%s}'
)
_TEXTS = ("details", "key", "party", "purpose", "run", "unit", "views")


def row_hash(previous: str, row_id: int, time: str, content: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of the hash of the row before and of a row's own content."""
    try:
        details, key, party, purpose, run, unit, views = (json_text(content[n]) for n in _TEXTS)
        if type(row_id) is not int or type(content["round"]) is not int:
            raise TypeError
        body = _BODY % (
            details, row_id, key, party, purpose, content["round"], run, json_text(time), unit, views
        )  # fmt: skip
    except TypeError:  # an edited row
        body = canonical_json({"id": row_id, "time": time, **content})
    return sha256(f"{previous}\n{body}".encode()).hexdigest()


def row_problems(row: tuple[Any, ...], expected_id: int, previous: str) -> list[str]:
    """Return what is wrong with a row that should have this id and follow this hash."""
    row_id, time, *content, recorded_previous, digest = row
    names = ("run", "party", "unit", "purpose", "round", "key", "views", "details")
    problems: list[str] = []
    if row_id != expected_id:
        problems.append(f"rows {expected_id} to {row_id - 1} are missing")
    elif recorded_previous != previous:
        problems.append(f"row {row_id} does not follow the row before it: one was replaced")
    values = dict(zip(names, content, strict=True))
    if row_hash(str(recorded_previous), row_id, time, values) != digest:
        problems.append(f"row {row_id} was edited: its hash does not match its content")
    try:
        parse_views(values["views"])
    except (ValueError, AttributeError, TypeError) as error:
        problems.append(f"row {row_id} holds an event that cannot be read: {error}")
    return problems


@dataclass(frozen=True)
class VerifyReport:
    """What `Ledger.verify` found.

    Attributes:
      ok: No problem.
      rows: Number of rows read.
      problems: One sentence for each problem.
      head: (id, hash) of the last row, (0, GENESIS) for an empty ledger; keep it elsewhere and
        give it to a later `verify`, which then notices a ledger that was reset or rewritten.
    """

    ok: bool
    rows: int
    problems: list[str]
    head: tuple[int, str]
