"""Records that occur more than once, within a silo and in several: counted, and what then holds for them.

The counts are private. A silo writes its own into its own log; of a simulation, anyone who runs it holds all data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fedllm.data.duplicates import count_duplicates, record_keys
from fedllm.data.silos import Silo


def repeats(silo: Silo, columns: Sequence[str]) -> dict[str, Any]:
    """Return a silo's training records that are equal in all columns, as its log tells of them.

    Args:
        columns: texts and target; compared after normalising.
    """
    found = count_duplicates(silo.train, columns)
    return {
        "kind": "repeated-records",
        "examples": found.examples,
        "distinct": found.distinct,
        "repeated": found.groups,
        "most_copies": found.largest,
        "meaning": _meaning(found.largest),
    }


def _meaning(copies: int) -> str:
    if copies < 2:
        return "no record occurs twice: the stated epsilon holds for each"
    return (
        f"the stated epsilon holds for one copy of a record; for all {copies} copies of one it is what "
        f"`fedllm account --ledger LEDGER --party NAME --copies {copies}` says"
    )


def warnings_of_repeats(silos: Sequence[Silo], columns: Sequence[str]) -> list[str]:
    """Return warnings about repeats over the data of all silos: one sentence per kind of repeat."""
    counts = {silo.name: count_duplicates(silo.train, columns) for silo in silos}
    found = []
    within = {name: count for name, count in counts.items() if count.groups}
    if within:
        name = max(within, key=lambda silo: within[silo].largest)
        most = within[name].largest
        copies, examples = (
            sum(getattr(count, what) for count in counts.values())
            for what in ("surplus", "examples")
        )
        found.append(
            f"{sum(count.groups for count in within.values())} training records occur more than once within a "
            f"silo, one of them {most} times (silo {name}), and {copies / examples:.1%} of all {examples} are copies: the "
            f"stated epsilon is that of one copy; "
            f"`fedllm account --ledger LEDGER --party {name!r} --copies {most}` says that of all"
        )
    holders: Counter[tuple[str, ...]] = Counter()
    for silo in silos:
        holders.update(set(record_keys(silo.train, columns)))
    shared = sum(number > 1 for number in holders.values())
    if shared:
        most = max(holders.values())
        found.append(
            f"{shared} training records are in more than one silo, one of them in {most}: their events add up; "
            "`fedllm account --ledger LEDGER --parties NAME,NAME` says what they come to"
        )
    return found
