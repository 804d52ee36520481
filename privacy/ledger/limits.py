"""Size limits of ledger rows; larger ones are neither written nor read.

A ledger may come from elsewhere, and names, keys and views in it from a server. Honest rows hold a few hundred bytes.
"""

from __future__ import annotations

import json
import re
from typing import Any

from privacy.ledger.error import LedgerError

MOST_NAME = 2_000
"""Characters of a run's, party's or purpose's name, or of a key."""
MOST_VIEWS = 256 << 10
"""Characters of all views of a row."""
MOST_DETAILS = 1 << 20
"""Characters of a row's details; a run's plan is in them."""
MOST_NESTED = 24
"""Brackets in each other, in the JSON of views and details."""

# Texts in JSON. It matches at every quote, closed or not, and never goes back: linear in whatever it is given.
_TEXTS = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_NO_BRACKET = re.compile(r"[^\[\]{}]+")


class TooMuch(LedgerError):
    """A row holds, or would hold, more than one may."""


def require_length(name: str, text: str, most: int) -> None:
    """Raise TooMuch for a text that is too long; the message quotes its beginning."""
    if len(text) > most:
        raise TooMuch(
            f"Expected at most {most} characters of {name} in a ledger's row, got {len(text)}: {text[:60]!r}..."
        )


def read_json(name: str, text: str, most: int) -> Any:
    """Read JSON that is neither long nor deep.

    Raises:
      TooMuch: It is.
      ValueError: It is no JSON.
    """
    require_length(name, text, most)
    depth = 0
    for bracket in _NO_BRACKET.sub("", _TEXTS.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MOST_NESTED:
            raise TooMuch(
                f"Expected at most {MOST_NESTED} brackets in each other in {name} of a ledger's row, got more: "
                f"{text[:60]!r}..."
            )
    return json.loads(text)
