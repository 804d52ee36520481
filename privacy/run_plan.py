"""Plan of a run: all releases of one party's data, by purpose, fixed before the first release.

A plan is a row of the ledger (purpose "plan") without a cost of its own; its events are in the row's details.
Ledgers that were written before plans were kept have none: what an old run released then stands for its plan.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent

from privacy.events.multiset import is_private, multiset
from privacy.events.serialization import event_to_json
from privacy.guarantee import Unit
from privacy.ledger.entry import canonical_json, choose_view, parse_views
from privacy.ledger.ledger import PLAN, Ledger
from privacy.ledger.limits import MOST_DETAILS, read_json
from privacy.plan_filter import Terms

__all__ = ["PLAN", "Commitment", "RecordedBudget", "RunPlan", "commitments", "outside"]

_SAME = (
    1e-12  # relative; noise that differs by less is the same, far below an accountant's round-off
)


@dataclass(frozen=True)
class RecordedBudget:
    """A budget that a plan was admitted under, as its row tells.

    Attributes:
      setting: The name of the setting that gives it.
      this_run: Whether it bounds this run's plan alone.
      terms: What the first plan left to later ones; None for `this_run`.
    """

    setting: str
    epsilon: float
    delta: float
    relation: str
    adversary: str
    this_run: bool = False
    terms: Terms | None = None

    def same_budget(self, other: RecordedBudget) -> bool:
        """Return True if both bound the same quantity by the same numbers."""
        fields = ("epsilon", "delta", "relation", "adversary", "this_run")
        return all(getattr(self, name) == getattr(other, name) for name in fields)

    def to_plain(self) -> dict[str, Any]:
        """Return the budget for a row's details."""
        plain = dict(vars(self))
        plain["terms"] = None if self.terms is None else self.terms.to_plain()
        return plain

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> RecordedBudget:
        """Return the inverse of `to_plain`."""
        terms = plain["terms"]
        return cls(**{**plain, "terms": None if terms is None else Terms(**terms)})


@dataclass(frozen=True)
class RunPlan:
    """All planned releases of one party's data in a run.

    Attributes:
      views: Purpose -> adversary -> all events of that purpose, as one event.
      budgets: What the plan was admitted under.
    """

    views: Mapping[str, Mapping[str, DpEvent]]
    budgets: tuple[RecordedBudget, ...] = ()

    def purposes(self, adversary: str) -> dict[str, Counter[DpEvent]]:
        """Return the planned multiset of each purpose in an adversary's view."""
        return {
            purpose: multiset(choose_view(views, adversary))
            for purpose, views in self.views.items()
        }

    def events(self, adversary: str) -> Counter[DpEvent]:
        """Return the whole multiset in an adversary's view."""
        total: Counter[DpEvent] = Counter()
        for events in self.purposes(adversary).values():
            total.update(events)
        return total

    @property
    def text(self) -> str:
        """The plan as text: equal for equal plans under equal budgets."""
        return canonical_json(self.details())

    def details(self) -> dict[str, str]:
        """Return the details of the plan's row that `of_details` reads."""
        views = {
            purpose: {str(name): event_to_json(event) for name, event in views.items()}
            for purpose, views in self.views.items()
        }
        return {
            "plan": canonical_json(views),
            "budgets": canonical_json([budget.to_plain() for budget in self.budgets]),
        }

    @classmethod
    def of_details(cls, details: Mapping[str, Any]) -> RunPlan:
        """Read a plan from the details of its row; ValueError if there is none."""
        return _read(str(details.get("plan", "")), str(details.get("budgets", "")))


@lru_cache(maxsize=1024)
def _read(plan: str, budgets: str) -> RunPlan:
    try:
        return RunPlan(
            {
                purpose: parse_views(canonical_json(views))
                for purpose, views in read_json("a plan", plan, MOST_DETAILS).items()
            },
            tuple(
                RecordedBudget.of_plain(plain)
                for plain in read_json("budgets", budgets, MOST_DETAILS)
            ),
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"Expected a run's plan in the details of its row, got {error}") from error


@dataclass(frozen=True)
class Commitment:
    """The events that one run counts for in an adversary's view.

    Attributes:
      run: Its id; several joined by ", " where they stand for one plan.
      planned: What its plan holds with a guarantee; without a plan what it released with one.
      raw: What it released without a guarantee.
      plan: None for a run without one, which was recorded before plans were kept.
    """

    run: str
    planned: Counter[DpEvent]
    raw: Counter[DpEvent]
    plan: RunPlan | None = None


def commitments(
    ledger: Ledger, adversary: str, party: str, unit: Unit, but: str | None = None
) -> list[Commitment]:
    """Return the cost of each run on a party's data, in the order of admission.

    Runs without a plan that began before the first plan count together as the first: nothing was held to a
    filter then. Such a run that began later stands at its first release.

    Args:
      but: A run that is left out while it has no plan, since it is about to get one.

    Raises:
      LedgerError: A row has no view of the adversary.
      ValueError: A plan cannot be read.
    """
    found: list[tuple[int, Commitment]] = []
    rows = ledger.plan_rows(party)
    for row in rows:
        if row.unit == unit.value:
            plan = RunPlan.of_details(json.loads(row.details))
            released = ledger.spent(adversary, party=party, unit=unit, run=row.run)
            planned = _private(plan.events(adversary))
            found.append((row.id, Commitment(row.run, planned, _raw(released), plan)))
    first = min((row_id for row_id, _ in found), default=math.inf)
    early: list[Commitment] = []
    for run, row_id in ledger.began(party).items():
        if run == but or any(row.run == run for row in rows):
            continue
        released = ledger.spent(adversary, party=party, unit=unit, run=run)
        if not released:
            continue
        commitment = Commitment(run, _private(released), _raw(released))
        if row_id < first:
            early.append(commitment)
        else:
            found.append((row_id, commitment))
    result = [commitment for _, commitment in sorted(found, key=lambda pair: pair[0])]
    return [_together(early), *result] if early else result


def _together(parts: Sequence[Commitment]) -> Commitment:
    planned: Counter[DpEvent] = Counter()
    raw: Counter[DpEvent] = Counter()
    for part in parts:
        planned.update(part.planned)
        raw.update(part.raw)
    return Commitment(", ".join(part.run for part in parts), planned, raw)


def _private(events: Mapping[DpEvent, int]) -> Counter[DpEvent]:
    return Counter({event: count for event, count in events.items() if is_private(event)})


def _raw(events: Mapping[DpEvent, int]) -> Counter[DpEvent]:
    return Counter({event: count for event, count in events.items() if not is_private(event)})


def outside(planned: Mapping[DpEvent, int], released: Mapping[DpEvent, int]) -> DpEvent | None:
    """Return an event of `released` that `planned` has no room for; None if all is within.

    A Gaussian mechanism takes the place of a planned one of the same sampling and at most as much noise: the
    planned one's pair dominates. Every other event must be planned itself. Events without a guarantee are not
    counted: they cost infinitely much however many there are.
    """
    if all(0 <= count <= planned.get(event, 0) for event, count in released.items()):
        return None  # each is planned itself
    room, wanted = _shapes(multiset(planned)), _shapes(multiset(released))
    for shape, asked in wanted.items():
        given = room.get(shape, [])
        for noise, event, _ in asked:  # Hall's condition; what may replace what is nested
            within = sum(n for value, _, n in given if value <= noise * (1 + _SAME))
            needed = sum(n for value, _, n in asked if value <= noise)
            if needed > within:
                return event
    return None


def _shapes(events: Mapping[DpEvent, int]) -> dict[Any, list[tuple[float, DpEvent, int]]]:
    """Return (noise, event, count) by what must agree exactly."""
    found: dict[Any, list[tuple[float, DpEvent, int]]] = {}
    for event, count in events.items():
        if count > 0 and is_private(event):
            shape, noise = _shape(event)
            found.setdefault(shape, []).append((noise, event, count))
    return found


def _shape(event: DpEvent) -> tuple[Any, float]:
    if isinstance(event, dp.GaussianDpEvent):
        return "gaussian", float(event.noise_multiplier)
    if isinstance(event, dp.PoissonSampledDpEvent) and isinstance(event.event, dp.GaussianDpEvent):
        return ("sampled", event.sampling_probability), float(event.event.noise_multiplier)
    return event, 0.0
