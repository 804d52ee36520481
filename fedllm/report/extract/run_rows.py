"""A run's ledger rows as an extract lists them, and back: rows that differ in their rounds alone are one item."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from fedllm.recorded_relation import SIZES
from fedllm.report.extract.statement import MOST_USES, Extract, ExtractError, RowsItem
from privacy.event_counts import multiset
from privacy.event_json import event_from_json, event_to_json
from privacy.ledger import LedgerEntry
from privacy.ledger_entry import canonical_json
from privacy.run_plan import RunPlan
from privacy.vocabulary import Unit

KEPT = ("relation", SIZES, "randomness", "delta", "noise_multiplier", "sampling_rate")
"""Details of a row that travel: what the report reads, and what is public of the mechanism."""


def items_of(rows: Iterable[LedgerEntry]) -> tuple[RowsItem, ...]:
    """List a run's rows. Neither times nor keys are in it."""
    rounds: dict[str, list[int]] = defaultdict(list)
    first: dict[str, RowsItem] = {}
    for row in rows:
        views = {str(name): event_to_json(event) for name, event in row.views.items()}
        details = {name: row.details[name] for name in KEPT if name in row.details}
        key = canonical_json([row.purpose, views, details])
        rounds[key].append(row.round)
        if key not in first:
            first[key] = RowsItem(
                purpose=row.purpose, rounds=((row.round, row.round),), views=views, details=details
            )
    return tuple(
        item.model_copy(update={"rounds": ranges(rounds[key])}) for key, item in first.items()
    )


def ranges(rounds: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return [first, last] of consecutive rounds; a round that occurs twice is in two ranges.

    >>> ranges([1, 2, 3, 7, 2])
    ((1, 3), (7, 7), (2, 2))
    """
    left = Counter(rounds)
    found: list[tuple[int, int]] = []
    while left:
        begun = len(found)
        for number in sorted(left):
            if len(found) > begun and found[-1][1] == number - 1:
                found[-1] = (found[-1][0], number)
            else:
                found.append((number, number))
        left = Counter({number: count - 1 for number, count in left.items() if count > 1})
    return tuple(found)


def entries_of(extract: Extract, first_id: int = 1) -> list[LedgerEntry]:
    """Write an extract's events out as ledger rows, numbered from ``first_id``; none where the silo keeps them.

    Raises:
        ExtractError: an event cannot be read, or the rows use more mechanisms than any run.
    """
    entries: list[LedgerEntry] = []
    uses = 0
    try:
        unit = Unit(extract.unit)
        for item in extract.events or ():
            views = {name: event_from_json(text) for name, text in item.views.items()}
            most = max(multiset(event).total() for event in views.values())
            uses += most * item.number
            if uses > MOST_USES:
                raise ExtractError(f"Expected at most {MOST_USES} uses of mechanisms, got {uses}")
            for first, last in item.rounds:
                for number in range(first, last + 1):
                    row_id = first_id + len(entries)
                    entries.append(
                        LedgerEntry(
                            run=extract.run,
                            party=extract.silo,
                            unit=unit,
                            purpose=item.purpose,
                            round=number,
                            key=f"extract/{row_id}",
                            views=views,
                            details=item.details,
                            id=row_id,
                        )
                    )
    except ExtractError:
        raise
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ExtractError(
            f"Expected events in the extract of {extract.silo}, got one that cannot be read: {error}"
        ) from None
    return entries


def plan_of(extract: Extract) -> RunPlan | None:
    """The run's plan; None where the extract has none.

    Raises:
        ExtractError: it cannot be read, or plans more uses of mechanisms than any run has.
    """
    if extract.plan is None:
        return None
    try:
        plan = RunPlan.of_details(extract.plan.model_dump())
        uses = max((plan.events(name).total() for name in extract.account), default=0)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ExtractError(
            f"Expected a plan in the extract of {extract.silo}, got one that cannot be read: {error}"
        ) from None
    if uses > MOST_USES:
        raise ExtractError(f"Expected a plan of at most {MOST_USES} uses, got {uses}")
    return plan
