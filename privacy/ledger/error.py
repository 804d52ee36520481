"""Error raised when a ledger cannot be used."""

from __future__ import annotations


class LedgerError(ValueError):
    """A ledger cannot be opened, read, trusted or written; the message says which and why."""


class LedgerRolledBack(LedgerError):
    """A ledger lacks rows that a head kept outside of it proves."""
