"""``fedllm ledger``: commands for a ledger of privacy events."""

from __future__ import annotations

from simulations.cli.lazy import Table, lazy_group

COMMANDS: Table = {
    "verify": (
        "simulations.cli.ledger.verify:verify",
        "Recompute the chain of a ledger; exit status 1 where a row is missing or was edited.",
    ),
    "show": (
        "simulations.cli.ledger.show:show",
        "Print the rows of a ledger, and whether its chain is whole (``ledger verify`` says what is not).",
    ),
    "adopt": (
        "simulations.cli.ledger.adopt:adopt",
        "Go on with a ledger that is refused as restored, copied, moved or lost; a row of it says why.",
    ),
}

group = lazy_group(
    "ledger",
    "Look at a ledger of privacy events, or go on deliberately with one that was restored or moved.",
    COMMANDS,
)
