"""One thing that a verification looked at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """The result of one verification.

    Attributes:
        name: "signature-file", "key", "signature", "report.json", "report.html", "ledger", "extracts", or
            "extract of SILO".
        ok: whether it holds.
        text: what was found, in words.
    """

    name: str
    ok: bool
    text: str
