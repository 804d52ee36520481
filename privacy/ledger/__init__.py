"""The ledger: a durable, append-only, hash-chained list of privacy events."""
