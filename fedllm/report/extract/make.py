"""At a silo: the extract of its ledger for the report of one run."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime

from dp_accounting.dp_event import DpEvent

from fedllm import __version__
from fedllm.budget.local_policy import LocalPolicy
from fedllm.files.durable import plain
from fedllm.report.accounting import Accounts, SiloAccounting, account_silos
from fedllm.report.extract.run_rows import items_of, plan_of, views_of
from fedllm.report.extract.statement import (
    MOST_SET_ASIDE,
    AccountItem,
    BudgetItem,
    Extract,
    ExtractError,
    FigureItem,
    Head,
    HeadItem,
    PlanItem,
    parse,
    text_of,
)
from fedllm.report.held import add_held_of
from privacy.accountants import UnsupportedEvent, make_accountant
from privacy.events.multiset import is_private
from privacy.guarantee import Relation, Unit
from privacy.ledger.adoption import adoption_sentence, lost_heads
from privacy.ledger.entry import canonical_json
from privacy.ledger.ledger import Ledger, LedgerEntry
from privacy.run_plan import commitments


def make_extract(
    ledger: Ledger,
    *,
    silo: str,
    run: str,
    unit: Unit,
    relation: Relation,
    delta: float,
    own: LocalPolicy | None = None,
    events: bool = True,
) -> Extract:
    """Make the extract of a silo's ledger about a run, as it is now.

    The figures are those that a report would state from the ledger itself: of all rows about the silo, other runs'
    included, by every accountant.

    Args:
        ledger: the silo's, open.
        unit, relation, delta: what the run's report states.
        own: the silo's own budget.
        events: whether the run's events and plan are in it. They are left out as well where they are too many.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    rows, digest = ledger.head()
    entries = [row for row in ledger.entries(party=silo) if (row.id or 0) <= rows]
    mine = [row for row in entries if row.run == run]
    found = account_silos(
        entries,
        run=run,
        silos=[silo],
        unit=unit,
        relation=relation,
        accounts=Accounts(relation, delta),
    )
    add_held_of(found, ledger, unit, relation, delta)
    plans = [row for row in ledger.plans(party=silo, run=run) if (row.id or 0) <= rows]
    extract = Extract(
        silo=silo,
        run=run,
        made=datetime.now(UTC).isoformat(timespec="milliseconds"),
        made_by=f"fedllm {__version__}",
        ledger=HeadItem(rows=rows, hash=digest),
        rows_of_run=len(mine),
        other_runs=len({row.run for row in entries} - {run}),
        rows_of_other_runs=len(entries) - len(mine),
        unit=unit.value,
        relation=relation.value,
        delta=delta,
        account=_account(found[0]),
        seeded=any(row.details.get("randomness") == "seeded" for row in entries),
        budget=None if own is None else _budget(ledger, silo, own),
        adoptions=tuple(_sentence(row) for row in ledger.adoptions())[-MOST_SET_ASIDE:],
        plan=None,
        events=None,
    )
    if not events:
        return extract
    details = plans[0].details if plans else None
    plan = None
    if details is not None:
        plan = PlanItem(plan=str(details["plan"]), budgets=str(details["budgets"]))
    whole = extract.model_copy(update={"plan": plan, "events": items_of(mine)})
    return whole if _readable(whole) else extract


def _readable(extract: Extract) -> bool:
    """Return True if the limits of an extract have room for its events."""
    try:
        read = parse(Extract, text_of(extract))
        views_of(read)
        plan_of(read)
    except ExtractError:
        return False
    return True


def make_head(ledger: Ledger, silo: str) -> Head:
    """State the ledger's head, whichever run its last row is of."""
    rows, digest = ledger.head()
    made = datetime.now(UTC).isoformat(timespec="milliseconds")
    aside = [lost for row in ledger.adoptions() for lost in sorted(lost_heads(_details(row)))]
    return Head(
        silo=silo,
        made=made,
        ledger=HeadItem(rows=rows, hash=digest),
        set_aside=tuple(HeadItem(rows=h.rows, hash=h.hash) for h in aside[-MOST_SET_ASIDE:]),
    )


def _details(row: LedgerEntry) -> str:
    return canonical_json(dict(row.details))


def _sentence(row: LedgerEntry) -> str:
    return adoption_sentence(row.id or 0, row.time or "", _details(row))[:2000]


def _account(silo: SiloAccounting) -> dict[str, AccountItem]:
    return {
        adversary: AccountItem(
            figures=tuple(FigureItem.of(figure) for figure in figures),
            held=FigureItem.of(silo.held[adversary]) if adversary in silo.held else None,
            reasons=tuple(reason[:2000] for reason in silo.reasons[adversary][:50]),
        )
        for adversary, figures in silo.figures.items()
    }


def _budget(ledger: Ledger, silo: str, own: LocalPolicy) -> BudgetItem:
    taken: Counter[DpEvent] = Counter()
    for commitment in commitments(ledger, own.bound().budget.adversary, silo, Unit(own.unit)):
        taken.update(commitment.planned)
        taken.update(commitment.raw)
    spent: float | None = math.inf
    if all(map(is_private, taken)):
        accountant = make_accountant(own.accountant, Relation(own.relation))
        try:
            spent = float(accountant.epsilon(taken, own.delta)) if taken else 0.0
        except UnsupportedEvent:
            spent = None
    left = None if spent is None else own.epsilon if spent == 0 else max(0.0, own.epsilon - spent)
    if left is not None and math.isnan(left):  # nothing is left of no limit once it is used up
        left = 0.0
    return BudgetItem(
        epsilon=plain(own.epsilon),
        delta=own.delta,
        unit=own.unit,
        relation=own.relation,
        accountant=own.accountant,
        spent=plain(spent),
        left=plain(left),
    )
