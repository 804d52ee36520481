"""``fedllm ledger``: commands for a ledger of privacy events."""

from __future__ import annotations

from simulations.cli.lazy import Table, lazy_group

COMMANDS: Table = {
    "verify": (
        "simulations.cli.ledger.verify:verify",
        "Verify the hash chain of a ledger; exit 1 if a row is missing or was edited.",
    ),
    "show": (
        "simulations.cli.ledger.show:show",
        "Print the rows of a ledger and any break of its chain (``ledger verify`` lists all problems).",
    ),
    "adopt": (
        "simulations.cli.ledger.adopt:adopt",
        "Accept a ledger that is refused as restored, copied, moved or lost; record the reason in a row.",
    ),
}

group = lazy_group(
    "ledger",
    "Verify or print a ledger of privacy events, or adopt one that was restored or moved.",
    COMMANDS,
)
