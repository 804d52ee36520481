"""The ledger: a durable, append-only, hash-chained list of uses of private data."""
