"""What the report draws and says in plain words: curves of some silos, from their rows.

Of a silo that keeps its events, or whose ledger holds other runs' as well, the rows are not all here: it has figures, but
no curves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedllm.report import accounting
from fedllm.report.accounting import Accounts, Multiset, SiloAccounting
from fedllm.report.guarantee import STATED, Headline
from fedllm.report.guarded import guarded
from fedllm.report.record import RunRecord
from fedllm.report.sections.copies import copies_cost
from fedllm.report.sections.curves import least_missed, missed_at, privacy_curves
from fedllm.report.sections.held import FILTER, PLAN
from privacy.guarantee import OUTSIDER, SERVER, Relation, Unit
from privacy.ledger.ledger import composed

CURVES = 8
"""Silos in the drawing of epsilon by round."""
POINTS = 8
"""Rounds at which each of them is accounted."""
FALSE_ALARMS = 0.05
"""Rate at which the guarantee is put in plain words."""
DISTINCT = 64
"""Silos with differing events up to which that is computed."""


def epsilon_by_round(
    run: RunRecord,
    accounted: Sequence[SiloAccounting],
    statement: Headline,
    unit: Unit,
    accounts: Accounts,
) -> dict[str, Any]:
    """Epsilon by round of some silos: those with the largest epsilon, and the smallest."""
    adversary = _drawn_adversary(statement)
    usable = [s for s in accounted if s.rows and not s.reasons[adversary] and run.whole(s.name)]
    usable.sort(key=lambda silo: -(silo.headline(adversary).epsilon or 0.0))
    chosen = usable if len(usable) <= CURVES else [*usable[: CURVES - 1], usable[-1]]
    lines = {}
    for silo in chosen:
        line = guarded(
            f"epsilon by round of {silo.name}",
            run.problems,
            lambda name=silo.name: accounting.epsilon_by_round(  # type: ignore[misc]
                run.entries,
                run=run.run_id,
                silo=name,
                unit=unit,
                adversary=adversary,
                accounts=accounts,
                points=POINTS,
            ),
            None,
        )
        if line is not None:
            lines[silo.name] = line
    return {"adversary": str(adversary), "silos": lines, "left_out": len(usable) - len(lines)}


def curves_of_the_largest(
    run: RunRecord,
    accounted: Sequence[SiloAccounting],
    statement: Headline,
    unit: Unit,
    relation: Relation,
) -> dict[str, Any] | None:
    """The whole curve of the silo with the largest epsilon; None where there is none to draw."""
    adversary = _drawn_adversary(statement)
    worst = _largest(run, accounted, adversary)
    if worst is None or worst.stated(adversary).accountant in (FILTER, PLAN):
        return None  # the curve of what was released is not the one that holds
    figure = worst.headline(adversary)
    events = _events(run, worst.name, unit, adversary)
    found = guarded(
        f"the privacy curve of {worst.name}",
        run.problems,
        lambda: privacy_curves(events, figure.accountant, relation),
        None,
    )
    if found is None:
        return None
    return {
        "silo": worst.name,
        "adversary": str(adversary),
        "accountant": figure.accountant,
        **found,
    }


def _largest(
    run: RunRecord, accounted: Sequence[SiloAccounting], adversary: str
) -> SiloAccounting | None:
    """The silo with the largest epsilon; None where none has a finite one above 0, or not all its rows are here."""
    able = [silo for silo in accounted if silo.rows and not silo.reasons[adversary]]
    able = [silo for silo in able if 0 < silo.headline(adversary).epsilon_or_inf < math.inf]
    worst = max(able, key=lambda silo: silo.headline(adversary).epsilon_or_inf, default=None)
    return worst if worst is not None and run.whole(worst.name) else None


def _events(run: RunRecord, silo: str, unit: Unit, adversary: str) -> Multiset:
    """The events of the rows that count for a silo."""
    parties = (silo, accounting.EVERYBODY)
    rows = [row for row in run.entries if row.party in parties and row.unit is unit]
    return composed(rows, adversary)


def copies_of_a_record(
    run: RunRecord,
    accounted: Sequence[SiloAccounting],
    statement: Headline,
    unit: Unit,
    accounts: Accounts,
) -> dict[str, Any] | None:
    """What copies of one record cost at the silo with the largest epsilon."""
    adversary = _drawn_adversary(statement)
    worst = _largest(run, accounted, adversary)
    if worst is None or unit is Unit.CLIENT:
        return None
    events = _events(run, worst.name, unit, adversary)
    costs = copies_cost(events, accounts.relation, accounts.delta)
    return {"silo": worst.name, "adversary": str(adversary), "accountant": "pld", "costs": costs}


def in_plain_words(
    run: RunRecord,
    accounted: Sequence[SiloAccounting],
    statement: Headline,
    unit: Unit,
    relation: Relation,
) -> dict[str, Any] | None:
    """What a test with few false alarms misses at the least, in whichever silo; None where nothing
    is guaranteed, or there are too many different silos to compute it for each."""
    if statement.level not in STATED:
        return None
    adversary = _drawn_adversary(statement)
    distinct: dict[tuple[frozenset[Any], str], tuple[str, Multiset]] = {}
    held = []
    for silo in accounted:
        if not silo.rows:
            continue
        stated = silo.stated(adversary)
        if stated.accountant in (FILTER, PLAN) or not run.whole(silo.name):
            # One point of the curve is what holds, and no other.
            held.append(missed_at(stated.epsilon_or_inf, statement.delta, FALSE_ALARMS))
        else:
            events = _events(run, silo.name, unit, adversary)
            name = silo.headline(adversary).accountant
            distinct[frozenset(events.items()), name] = silo.name, events
    if not (distinct or held) or len(distinct) > DISTINCT:
        return None
    for (_, name), (silo_name, events) in distinct.items():
        held.append(
            guarded(
                f"what a test misses at {silo_name}",
                run.problems,
                lambda e=events, n=name: least_missed(e, n, relation, FALSE_ALARMS),  # type: ignore[misc]
                0.0,
            )
        )
    missed = min(*held, 1.0)
    return {"adversary": str(adversary), "false_alarms": FALSE_ALARMS, "missed": missed}


def _drawn_adversary(statement: Headline) -> str:
    return OUTSIDER if statement.level == "outsider-only" else SERVER
