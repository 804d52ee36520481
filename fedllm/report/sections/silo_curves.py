"""Curves and plain-language statements of the report for some silos, from their rows.

Of a silo that keeps its events, or whose ledger holds other runs' as well, the rows are not all here: it has figures, but
no curves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from fedllm.report import accounting
from fedllm.report.accounting import Accounts, Multiset, SiloAccounting
from fedllm.report.guarantee import STATED, Headline
from fedllm.report.guarded import guarded
from fedllm.report.held import FILTER, PLAN
from fedllm.report.record import RunRecord
from fedllm.report.schema_base import Part, Real
from fedllm.report.sections.curves import least_missed, missed_at, privacy_curves
from privacy.guarantee import OUTSIDER, SERVER, Adversary, Relation, Unit
from privacy.ledger.ledger import composed

CURVES = 8
"""Silos in the drawing of epsilon by round."""
POINTS = 8
"""Rounds at which each of them is accounted."""
FALSE_ALARMS = 0.01
"""Rate at which the guarantee is put in plain words."""
DISTINCT = 64
"""Silos with differing events up to which that is computed."""


class RoundCurvesPart(Part):
    """Epsilon by round of some silos: lists of [round, epsilon]."""

    adversary: str
    silos: dict[str, list[tuple[int, Real]]]
    left_out: int


class PrivacyCurvesPart(Part):
    """The whole privacy curve of the silo with the largest epsilon."""

    silo: str
    adversary: str
    accountant: str
    mu: float | None = Field(description="The dominating mu.")
    mu_floor: float | None = Field(description="The mu covers every delta above this.")
    epsilon_delta: list[tuple[float, float, float | None]] = Field(
        description="[epsilon, delta, delta of the dominating mu]"
    )
    trade_off: list[tuple[float, float, float | None]] = Field(
        description="[rate of false alarms, least rate of missed detections, the same of the "
        "dominating mu]"
    )


class MeaningPart(Part):
    """Meaning of the guarantee for a test of a record, in any silo."""

    adversary: str
    false_alarms: float = Field(description="Rate of false alarms of the test.")
    missed: float = Field(description="Least rate of missed detections at that rate.")


def epsilon_by_round(
    run: RunRecord,
    accounted: Sequence[SiloAccounting],
    statement: Headline,
    unit: Unit,
    accounts: Accounts,
) -> dict[str, Any]:
    """Return epsilon by round of some silos: those with the largest epsilon, and the smallest."""
    adversary = drawn_adversary(statement)
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
    """Return the whole curve of the silo with the largest epsilon; None if there is none to draw."""
    adversary = drawn_adversary(statement)
    worst = largest(run, accounted, adversary)
    if worst is None or worst.stated(adversary).accountant in (FILTER, PLAN):
        return None  # the curve of what was released is not the one that holds
    figure = worst.headline(adversary)
    events = events_of(run, worst.name, unit, adversary)
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


def largest(
    run: RunRecord, accounted: Sequence[SiloAccounting], adversary: str
) -> SiloAccounting | None:
    """Return the silo with the largest epsilon; None if none has a finite one above 0, or not all its rows are here."""
    able = [silo for silo in accounted if silo.rows and not silo.reasons[adversary]]
    able = [silo for silo in able if 0 < silo.headline(adversary).epsilon_or_inf < math.inf]
    worst = max(able, key=lambda silo: silo.headline(adversary).epsilon_or_inf, default=None)
    return worst if worst is not None and run.whole(worst.name) else None


def events_of(run: RunRecord, silo: str, unit: Unit, adversary: str) -> Multiset:
    """Return the events of the rows that count for a silo."""
    parties = (silo, accounting.EVERYBODY)
    rows = [row for row in run.entries if row.party in parties and row.unit is unit]
    return composed(rows, adversary)


def in_plain_words(
    run: RunRecord,
    accounted: Sequence[SiloAccounting],
    statement: Headline,
    unit: Unit,
    relation: Relation,
) -> dict[str, Any] | None:
    """Return the minimum share of records that a test with few false alarms misses, in any silo; None without a
    guarantee, or with too many different silos to compute it for each."""
    if statement.level not in STATED:
        return None
    adversary = drawn_adversary(statement)
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
            events = events_of(run, silo.name, unit, adversary)
            name = silo.headline(adversary).accountant
            distinct[frozenset(events.items()), name] = silo.name, events
    if not (distinct or held) or len(distinct) > DISTINCT:
        return None
    for (_, name), (silo_name, events) in distinct.items():
        held.append(
            guarded(
                f"missed detections of a test at {silo_name}",
                run.problems,
                lambda e=events, n=name: least_missed(e, n, relation, FALSE_ALARMS),  # type: ignore[misc]
                0.0,
            )
        )
    missed = min(*held, 1.0)
    return {"adversary": str(adversary), "false_alarms": FALSE_ALARMS, "missed": missed}


def drawn_adversary(statement: Headline) -> str:
    """Return the adversary that figures are drawn for: that of the statement, else the server."""
    if Adversary(statement.adversary).sees_sums:
        return statement.adversary
    return OUTSIDER if statement.level == "outsider-only" else SERVER


MARKUP = """\
{% if epsilon or delta_curve %}
<h2>How the privacy was spent</h2>
<div class="figures">
{% if epsilon %}
<figure id="figure-epsilon">{{ epsilon }}
<figcaption>Epsilon of what was released by the end of each round (a guarantee only if where the run stops does not depend on the outputs; what holds is in the first line) against {{ "" if report.epsilon_by_round.adversary.startswith("sum-only") else "the " }}{{ report.epsilon_by_round.adversary }}, computed
from the ledger at a few rounds{% if report.target.epsilon is not none %}; the dashed line is the target{% endif %}.{% if report.epsilon_by_round.left_out %} Of {{ report.silos | length }} silos, those with the largest epsilon and the smallest are drawn.{% endif %}</figcaption></figure>
{% endif %}
{% if delta_curve %}
<figure id="figure-delta">{{ delta_curve }}
<figcaption>The guarantee of the silo with the largest epsilon, {{ curves.silo }}, against {{ "" if curves.adversary.startswith("sum-only") else "the " }}{{ curves.adversary }}:
for every epsilon the delta that holds with it. One point of the curve is stated; all of it holds.
{% if curves.mu is not none %}The second line is that of the dominating mu, {{ curves.mu | mu }}: one number whose curve is never below the first (for every delta above {{ "%.0e" | format(curves.mu_floor) }}).{% endif %}</figcaption></figure>
<figure id="figure-tradeoff">{{ trade_off }}
<figcaption>The same guarantee as a test: who tries to tell whether one given {{ "example" if g.unit == "example" else "silo's data" }} was used
cannot come below the curve. On the dotted line one only guesses.
{% if curves.mu is not none %}The curve of the dominating mu is never above (but for {{ "%.0e" | format(curves.mu_floor) }}).{% endif %}</figcaption></figure>
{% endif %}
</div>
{% endif %}
"""
