"""From extracts to the report's figures: what each silo vouches for, computed again where it sent its events.

No text of a silo reaches the report's statement but its own reasons for having no guarantee, quoted. Of figures the
larger counts, the silo's or that of its events; whether an accountant's number is a bound is known here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from dp_accounting.dp_event import DpEvent

from fedllm.report.accounting import (
    ACCOUNTANTS,
    Accounts,
    Figure,
    Multiset,
    SiloAccounting,
    account_silos,
)
from fedllm.report.extract.coverage import SAME, check_told
from fedllm.report.extract.run_rows import entries_of, plan_of
from fedllm.report.extract.statement import AccountItem, Extract, ExtractError, printable
from fedllm.report.extract.store import ExtractsFound
from fedllm.report.guarded import FAILURES
from fedllm.report.held import FILTER, PLAN, held_by_plan
from fedllm.report.sections.ledger import vouching_row
from privacy.accountants import ACCOUNTANTS as KNOWN
from privacy.events.multiset import is_private
from privacy.guarantee import SERVER, Adversary, Relation, Unit
from privacy.ledger.ledger import LedgerEntry, composed

PLANNED = "of the run's plan, which was fixed before its first release{by}; the releases so far are within it"
HELD = "the budget that a privacy filter held over the {runs} runs on the silo's ledger, as the silo states"
UNHELD = (
    "the silo's ledger holds {runs} runs, and it states no budget that all of them were planned under: this "
    "epsilon holds only if what they do was fixed before the first of them"
)
WITHHELD = "the silo {silo} states no epsilon of the {runs} runs on its ledger together, of which this run's is a part"
INFINITE = "the silo {silo} states no finite epsilon"
TOO_LITTLE = "the silo {silo} states less for the {runs} runs on its ledger than the events of this run alone cost"


@dataclass
class Vouching:
    """The combined result of a run's extracts.

    Attributes:
        silos: the accounts of those that vouch, in order of their names.
        unvouched: the others, and why nothing is known of each.
        entries: the rows that were sent, of all silos.
        whole: names of the silos of which these are all rows on their ledgers.
        seeded: whether any silo states noise from a seed.
        other_runs: the largest number of other runs on one silo's ledger.
        part: the report's part (:class:`fedllm.report.sections.ledger.VouchingPart`).
    """

    silos: list[SiloAccounting] = field(default_factory=list)
    unvouched: dict[str, str] = field(default_factory=dict)
    entries: list[LedgerEntry] = field(default_factory=list)
    whole: set[str] = field(default_factory=set)
    seeded: bool = False
    other_runs: int = 0
    part: list[dict[str, Any]] = field(default_factory=list)


def compose(
    found: ExtractsFound,
    *,
    unit: Unit,
    relation: Relation,
    delta: float,
    adversaries: Collection[str],
    accounts: Accounts,
    against: Adversary = SERVER,
) -> Vouching:
    """Make the accounts of all silos that vouch; say of the others why they do not.

    Args:
        unit, relation, delta: of the report; an extract for others does not count.
        adversaries: to state, outsider and server among them.
        against: in whose view the server counted what it was told.
    """
    result = Vouching()
    for name, one in found.silos.items():
        row = vouching_row(one)
        result.part.append(row)
        try:
            if one.extract is None:
                raise ExtractError(one.problem)
            _check_terms(one.extract, unit, relation, delta)
            entries = _entries(one.extract, len(result.entries) + 1, adversaries)
            account = _Account(one.extract, entries, adversaries, accounts)
            silo = account.silo()
            check_told(one.expected, silo, account, accounts, against)
        except FAILURES as error:
            why = str(error)
            if not isinstance(error, ExtractError):
                why = f"its extract cannot be accounted for: {type(error).__name__}: {why[:200]}"
            result.unvouched[name] = why
            row |= {"vouches": False, "why": why}
            continue
        row |= {"vouches": True, "disagreements": account.disagreements}
        result.silos.append(silo)
        result.entries += entries
        result.seeded = result.seeded or one.extract.seeded
        result.other_runs = max(result.other_runs, one.extract.other_runs)
        if one.extract.events is not None and not one.extract.shared:
            result.whole.add(name)
    return result


def _check_terms(extract: Extract, unit: Unit, relation: Relation, delta: float) -> None:
    asked = f"unit {unit.value}, relation {relation.value}, delta {delta:g}"
    stated = f"unit {extract.unit}, relation {extract.relation}, delta {extract.delta:g}"
    if (extract.unit, extract.relation) != (unit.value, relation.value) or extract.delta > delta:
        raise ExtractError(f"its extract is stated for {stated[:200]}, the report for {asked}")


def _entries(extract: Extract, first_id: int, adversaries: Collection[str]) -> list[LedgerEntry]:
    if extract.events is None:
        return []
    kept = tuple(
        item.model_copy(update={"views": {n: e for n, e in item.views.items() if n in adversaries}})
        for item in extract.events
    )
    return entries_of(extract.model_copy(update={"events": kept}), first_id)


class _Account:
    """One silo's account: its own statement, and the figures computed from its events."""

    def __init__(
        self,
        extract: Extract,
        entries: list[LedgerEntry],
        adversaries: Collection[str],
        accounts: Accounts,
    ) -> None:
        self.extract = extract
        self.entries = entries
        self.adversaries = sorted(map(Adversary, adversaries), key=lambda a: a.strength)
        self.accounts = accounts
        self.disagreements: list[str] = []
        self.again: SiloAccounting | None = None
        if extract.events is not None:
            try:
                (self.again,) = account_silos(
                    entries,
                    run=extract.run,
                    silos=[extract.silo],
                    unit=Unit(extract.unit),
                    relation=accounts.relation,
                    accounts=accounts,
                )
            except FAILURES as error:
                raise ExtractError(
                    f"its events cannot be accounted for: {type(error).__name__}: {str(error)[:200]}"
                ) from None

    def silo(self) -> SiloAccounting:
        """Return the account that the report states."""
        extract, again = self.extract, self.again
        silo = SiloAccounting(
            extract.silo,
            trainings=[] if again is None else again.trainings,
            rounds=0 if again is None else again.rounds,
            rows=extract.rows_of_run + extract.rows_of_other_runs,
            other_rows=extract.rows_of_other_runs,
        )
        for adversary in self.adversaries:
            stated = _of_adversary(extract, adversary)
            silo.reasons[adversary] = self._reasons(stated, adversary)
            if silo.reasons[adversary]:
                infinite = "no guarantee: " + "; ".join(silo.reasons[adversary])
                silo.figures[adversary] = [
                    Figure(name, float("inf"), True, note=infinite) for name, _ in ACCOUNTANTS
                ]
                continue
            silo.figures[adversary] = self._figures(stated, adversary)
            held = self._held(stated, silo.headline(adversary), adversary)
            if held is not None:
                silo.held[adversary] = held
        return silo

    def _reasons(self, stated: AccountItem, adversary: str) -> list[str]:
        found = [] if self.again is None else list(self.again.reasons.get(adversary, []))
        own = [reason for reason in stated.reasons if reason not in found]
        return [*found, *(f'the silo states: "{printable(reason)}"' for reason in own)]

    def _figures(self, stated: AccountItem, adversary: str) -> list[Figure]:
        claimed = {item.accountant: item.figure() for item in stated.figures}
        again = {}
        if self.again is not None:
            again = {f.accountant: f for f in self.again.figures.get(adversary, [])}
        found = []
        for name, _ in ACCOUNTANTS:
            both = [f[name] for f in (claimed, again) if name in f]
            if both:
                found.append(self._larger(name, claimed.get(name), again.get(name), adversary))
        return found

    def _larger(
        self, name: str, claimed: Figure | None, again: Figure | None, adversary: str
    ) -> Figure:
        """Return the larger of two figures, and a disagreement where they should be the same, or it is the events'.

        Of a ledger with other runs the events here are a part: what they cost is never stated as the cost of all.
        """
        alone = not self.extract.shared
        mine = None if claimed is None else claimed.epsilon
        theirs = None if again is None else again.epsilon
        if not alone and mine is None:
            return self._none_of_all(name, WITHHELD)
        if again is None:
            return self._claimed(name, claimed)
        if claimed is None or mine is None or theirs is None:
            if mine is not None or (alone and theirs is not None):
                self._disagree(name, adversary, mine, theirs)
            return again
        less = theirs > mine + SAME * max(1.0, mine)
        more = mine > theirs + SAME * max(1.0, theirs)
        if less or (alone and more):
            self._disagree(name, adversary, mine, theirs)
        if less and not alone:
            return self._none_of_all(name, TOO_LITTLE)
        return again if theirs >= mine else self._claimed(name, claimed)

    def _claimed(self, name: str, claimed: Figure | None) -> Figure:
        """Return the silo's own figure; its words stay out."""
        bound = KNOWN[name].is_bound
        if claimed is None:
            return Figure(name, None, bound)
        infinite = claimed.epsilon == math.inf
        note = INFINITE.format(silo=printable(self.extract.silo)) if infinite else ""
        return Figure(name, claimed.epsilon, bound, claimed.mu, note)

    def _none_of_all(self, name: str, why: str) -> Figure:
        """Return no number if a ledger's runs cost more than any known number."""
        note = why.format(silo=printable(self.extract.silo), runs=self.extract.other_runs + 1)
        return Figure(name, None, KNOWN[name].is_bound, note=note)

    def _disagree(
        self, name: str, adversary: str, mine: float | None, theirs: float | None
    ) -> None:
        self.disagreements.append(
            f"epsilon by {name} against {adversary}: the silo states {_shown(mine)}, the events of this run that "
            f"it sent cost {_shown(theirs)}"
        )

    def _held(self, stated: AccountItem, headline: Figure, adversary: str) -> Figure | None:
        """Return the enforced bound, if it is not the epsilon of the releases; in the server's own words."""
        claimed, runs = stated.held, self.extract.other_runs + 1
        at_least = headline.epsilon_or_inf
        if self.extract.shared:
            held = None if claimed is None else claimed.figure().epsilon
            if claimed is None or claimed.accountant != FILTER or held is None:
                return Figure(FILTER, None, False, note=UNHELD.format(runs=runs))
            return Figure(FILTER, max(held, at_least), True, note=HELD.format(runs=runs))
        again = self._plan_again(headline, adversary)
        if again is not None and again.epsilon is None:
            return again
        mine = None if claimed is None else claimed.figure().epsilon
        if claimed is not None and mine is None:
            note = (
                "on the silo's word, this epsilon holds only if the number of releases did not depend on their "
                "values"
            )
            return Figure(PLAN, None, False, note=note)
        theirs = None if again is None else again.epsilon
        if mine is None and theirs is None:
            return None
        if mine is not None and theirs is not None and abs(mine - theirs) > SAME * max(1.0, mine):
            self._disagree(PLAN, adversary, mine, theirs)
        by = "" if again is None else f", by the {headline.accountant.upper()} accountant"
        largest = max(mine or 0.0, theirs or 0.0, at_least)
        return Figure(PLAN, largest, headline.bound, note=PLANNED.format(by=by))

    def _plan_again(self, headline: Figure, adversary: str) -> Figure | None:
        plan = plan_of(self.extract)
        if plan is None or self.again is None:
            return None
        try:
            planned = _private(plan.events(adversary))
            released = composed(self.entries, adversary)
            return held_by_plan(
                planned, released, headline, self.accounts.relation, self.accounts.delta
            )
        except FAILURES as error:
            raise ExtractError(
                f"its plan cannot be accounted for: {type(error).__name__}: {str(error)[:200]}"
            ) from None

    def planned(self, adversary: str) -> Multiset | None:
        """Return the events with a guarantee that the run's plan holds; None without a plan."""
        plan = plan_of(self.extract)
        return None if plan is None else _private(plan.events(adversary))

    def released(self, adversary: str) -> Multiset | None:
        """Return the events of the run's rows; None if the silo keeps them."""
        return None if self.again is None else composed(self.entries, adversary)


def _of_adversary(extract: Extract, adversary: Adversary) -> AccountItem:
    """Return an extract's statement against an adversary, or the weakest stronger one."""
    able = [name for name in extract.account if Adversary(name).strength >= adversary.strength]
    if not able:
        return AccountItem(figures=(), reasons=(f"nothing is stated against {adversary}",))
    return extract.account[min(able, key=lambda name: Adversary(name).strength)]


def _private(events: Mapping[DpEvent, int]) -> Multiset:
    return Multiset({event: count for event, count in events.items() if is_private(event)})


def _shown(epsilon: float | None) -> str:
    return "none" if epsilon is None else f"{epsilon:.6g}"
