"""A run's ledger rows as an extract lists them, and back: rows that differ in their rounds alone are one item."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import attr
from dp_accounting.dp_event import DpEvent

from fedllm.budget.recorded_rows import SIZES
from fedllm.report.extract.statement import (
    MOST_DISTINCT,
    MOST_USES,
    Extract,
    ExtractError,
    RowsItem,
)
from privacy.events.multiset import multiset
from privacy.events.serialization import event_from_json, event_to_json
from privacy.guarantee import Unit
from privacy.ledger.entry import canonical_json
from privacy.ledger.ledger import LedgerEntry
from privacy.mechanisms.sampling import SMALLEST_RATE
from privacy.run_plan import RunPlan

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


def views_of(extract: Extract) -> list[dict[str, DpEvent]]:
    """Read the events of each item of an extract; none where the silo keeps them.

    Raises:
        ExtractError: one cannot be read, or they are more, or rarer, than those of any run.
    """
    found = []
    uses = 0
    distinct: set[DpEvent] = set()
    with _readable(extract, "events"):
        for item in extract.events or ():
            views = {name: event_from_json(text) for name, text in item.views.items()}
            counts = [multiset(event) for event in views.values()]
            uses += max(events.total() for events in counts) * item.number
            distinct.update(*counts)
            if uses > MOST_USES:
                raise ExtractError(f"Expected at most {MOST_USES} uses of mechanisms, got {uses}")
            found.append(views)
        _check_mechanisms(distinct)
    return found


def entries_of(extract: Extract, first_id: int = 1) -> list[LedgerEntry]:
    """Write an extract's events out as ledger rows, numbered from ``first_id``; none where the silo keeps them.

    Raises:
        ExtractError: as of :func:`views_of`.
    """
    entries: list[LedgerEntry] = []
    read = views_of(extract)
    with _readable(extract, "events"):
        unit = Unit(extract.unit)
        for item, views in zip(extract.events or (), read, strict=True):
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
    return entries


def plan_of(extract: Extract) -> RunPlan | None:
    """Return the run's plan; None if the extract has none.

    Raises:
        ExtractError: it cannot be read, or plans more, or rarer, uses of mechanisms than any run has.
    """
    if extract.plan is None:
        return None
    with _readable(extract, "a plan"):
        plan = RunPlan.of_details(extract.plan.model_dump())
        planned = [plan.events(name) for name in extract.account]
        uses = max((events.total() for events in planned), default=0)
        if uses > MOST_USES:
            raise ExtractError(f"Expected a plan of at most {MOST_USES} uses, got {uses}")
        _check_mechanisms(set[DpEvent]().union(*planned))
    return plan


@contextmanager
def _readable(extract: Extract, what: str) -> Iterator[None]:
    """Raise an ExtractError that names the silo instead of whatever reading a text raises."""
    try:
        yield
    except ExtractError:
        raise
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ExtractError(
            f"Expected {what} in the extract of {extract.silo}, got one that cannot be read: {error}"
        ) from None


def _check_mechanisms(events: Collection[DpEvent]) -> None:
    """Refuse more mechanisms than accountants answer for in time, and sampling so rare that it never happens."""
    if len(events) > MOST_DISTINCT:
        raise ExtractError(
            f"Expected at most {MOST_DISTINCT} different mechanisms, got {len(events)}"
        )
    for event in events:
        for rate in _rates(event):
            if 0 < rate < SMALLEST_RATE:
                raise ExtractError(
                    f"Expected sampling rates of 0, or of {SMALLEST_RATE:.3g} at least, got {rate:g}"
                )


def _rates(event: Any) -> Iterator[float]:
    """Yield the sampling rates in an event, nested ones included."""
    if isinstance(event, tuple | list):
        for part in event:
            yield from _rates(part)
    elif isinstance(event, DpEvent):
        for field in attr.fields(type(event)):
            value = getattr(event, field.name)
            if field.name == "sampling_probability":
                yield float(value)
            yield from _rates(value)
