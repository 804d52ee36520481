"""Error raised when a ledger cannot be used."""

from __future__ import annotations


class LedgerError(ValueError):
    """A ledger cannot be opened, read, trusted or written; the message says which and why."""


class LedgerRolledBack(LedgerError):
    """A head that was kept outside of a ledger tells of rows that the ledger lacks."""
