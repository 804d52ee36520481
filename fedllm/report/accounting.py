"""From the ledger to numbers: what each silo spent, against whom, by which accountant."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent

from fedllm.budget.recorded_rows import composes, proven_relation
from privacy.accountants import UnsupportedEvent, make_accountant
from privacy.accountants.normal_form import as_accounted
from privacy.events.kinds import (
    DiscreteGaussianDpEvent,
    DiscreteGaussianSumDpEvent,
    PureDpEvent,
    ScalarNoiseDpEvent,
    VectorNoiseDpEvent,
)
from privacy.events.multiset import is_private
from privacy.events.serialization import event_to_json, kind
from privacy.guarantee import OUTSIDER, SERVER, SUM_ONLY, Adversary, Relation, Unit
from privacy.ledger.ledger import LedgerEntry, LedgerError, composed

EVERYBODY = "server"
"""The ledger's party for releases that concern all silos together."""

TOGETHER = "all silos together"
"""The name under which they are reported where no silo has rows of its own."""

ACCOUNTANTS: tuple[tuple[str, str], ...] = (
    ("pld", "PLD"),
    ("rdp", "RDP"),
    ("gdp-exact", "GDP exact"),
    ("gdp-dominating", "GDP dominating"),
    ("gdp-clt", "GDP-CLT"),
)
HEADLINE = ("pld", "rdp")
"""Accountants that may give the headline, in order of preference: bounds, and only these."""

Multiset = Counter[DpEvent]


@dataclass(frozen=True)
class Figure:
    """One accountant's result for one silo and one adversary.

    Attributes:
        epsilon: None where the accountant cannot represent an event; ``note`` then says which.
        mu: parameter of Gaussian differential privacy, where the accountant has one.
        bound: whether the number is a proven upper bound.
    """

    accountant: str
    epsilon: float | None
    bound: bool
    mu: float | None = None
    note: str = ""

    @property
    def epsilon_or_inf(self) -> float:
        """Epsilon, infinite if there is none."""
        return math.inf if self.epsilon is None else self.epsilon


@dataclass
class SiloAccounting:
    """The uses of one silo's data in all runs of the ledger, and their cost.

    Attributes:
        figures: adversary -> one figure an accountant, in the order of ``ACCOUNTANTS``.
        reasons: adversary -> why there is no guarantee; empty if there is one.
        trainings: (sampling rate, noise multiplier, number) of this run's training mechanisms.
        rounds: rounds of this run in which the silo trained.
        other_rows: rows of other runs that are counted in.
        held: adversary -> what holds where it is not the epsilon of what was released (:mod:`fedllm.report.held`). Its
            epsilon is None where that epsilon holds under the condition in ``note`` alone.
    """

    name: str
    held: dict[str, Figure] = field(default_factory=dict)
    figures: dict[str, list[Figure]] = field(default_factory=dict)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    trainings: list[tuple[float, float, int]] = field(default_factory=list)
    rounds: int = 0
    rows: int = 0
    other_rows: int = 0

    def headline(self, adversary: str) -> Figure:
        """Return the figure to state: the first of ``HEADLINE`` that could account for every event."""
        by_name = {figure.accountant: figure for figure in self.figures[adversary]}
        for name in HEADLINE:
            if name in by_name and by_name[name].epsilon is not None and by_name[name].bound:
                return by_name[name]
        notes = "; ".join(dict.fromkeys(f.note for f in self.figures[adversary] if f.note))
        return Figure("none", math.inf, True, note=notes or "no accountant could account for it")

    def stated(self, adversary: str) -> Figure:
        """Return the figure of the guarantee: the plan's, or over several runs the budget that a filter held."""
        figure = self.headline(adversary)
        held = self.held.get(adversary)
        if held is None or figure.epsilon is None or math.isinf(figure.epsilon_or_inf):
            return figure
        return replace(figure, note=held.note, bound=figure.bound) if held.epsilon is None else held


class Accounts:
    """Accounts for multisets of events; identical ones once."""

    def __init__(self, relation: Relation, delta: float) -> None:
        self.relation = relation
        self.delta = delta
        self._made: dict[str, Any] = {}
        self._known: dict[tuple[str, frozenset[tuple[DpEvent, int]]], Figure] = {}

    def figure(self, name: str, events: Multiset) -> Figure | None:
        """Return the accountant's figure; None if there is no such accountant for the relation."""
        if name not in self._made:
            try:
                self._made[name] = make_accountant(name, self.relation)
            except (ValueError, KeyError):
                self._made[name] = None
        accountant = self._made[name]
        if accountant is None:
            return None
        key = (name, frozenset(events.items()))
        if key not in self._known:
            self._known[key] = self._ask(accountant, name, events)
        return self._known[key]

    def _ask(self, accountant: Any, name: str, events: Multiset) -> Figure:
        if not all(is_private(event) for event in events):
            return Figure(
                name, math.inf, True, note="a release without privacy is among the events"
            )
        if not events:
            return Figure(name, 0.0, bool(accountant.is_bound))
        try:
            epsilon = float(accountant.epsilon(events, self.delta))
            mu = accountant.mu(events)
        except UnsupportedEvent as error:
            return Figure(name, None, bool(accountant.is_bound), note=str(error))
        return Figure(name, epsilon, bool(accountant.is_bound), None if mu is None else float(mu))


def account_silos(
    entries: Sequence[LedgerEntry],
    *,
    run: str | None,
    silos: Iterable[str],
    unit: Unit,
    relation: Relation,
    accounts: Accounts,
    defects: Sequence[str] = (),
) -> list[SiloAccounting]:
    """Account for every silo of a run, in all that the ledger holds about it.

    Args:
        entries: all rows of the ledger, of all runs.
        run: the run's id; None if it is lost: then every silo of the ledger is one of the run's.
        silos: silos that must appear even where they have no row.
        defects: why no row can be relied on; then no silo has a guarantee.
        unit: the run's privacy unit; rows of another unit do not compose with it, and a silo that
            has some gets no guarantee. The same for rows of a relation that does not imply the run's.
    """
    by_party: dict[str, list[LedgerEntry]] = defaultdict(list)
    for entry in entries:
        by_party[entry.party].append(entry)
    common = by_party.pop(EVERYBODY, [])
    names = dict.fromkeys(silos)
    names |= dict.fromkeys(
        party
        for party, rows in by_party.items()
        if run is None or any(row.run == run for row in rows)
    )
    if not names and any(run in (None, row.run) for row in common):
        names = {TOGETHER: None}
    concerned = [row for name in names for row in by_party.get(name, [])] + common
    adversaries = adversaries_in(concerned)
    result = []
    for name in names:
        rows = by_party.get(name, []) + common
        silo = SiloAccounting(name, rows=len(rows))
        silo.other_rows = sum(row.run != run for row in rows)
        mine = [row for row in rows if row.run == run and row.purpose == "train"]
        silo.rounds = len({row.round for row in mine})
        silo.trainings = trainings(mine)
        usable = [row for row in rows if row.unit is unit and composes(row, relation)]
        for adversary in adversaries:
            events, unseen = composed_or_why(usable, adversary)
            found = [*defects, *_unusable(rows, unit, relation), *unseen]
            silo.reasons[adversary] = list(dict.fromkeys(found + no_guarantee_reasons(events)))
            if silo.reasons[adversary]:
                infinite = "no guarantee: " + "; ".join(silo.reasons[adversary])
                figures = [Figure(key, math.inf, True, note=infinite) for key, _ in ACCOUNTANTS]
                silo.figures[adversary] = figures
                continue
            answers = (accounts.figure(key, events) for key, _ in ACCOUNTANTS)
            silo.figures[adversary] = [figure for figure in answers if figure is not None]
        result.append(silo)
    return result


def adversaries_in(entries: Iterable[LedgerEntry]) -> list[str]:
    """Return the adversaries to report, strongest last: outsider, server, and any that a row has a view for."""
    found = {OUTSIDER, SERVER}
    for entry in entries:
        found.update(Adversary(name) for name in entry.views)
    return [str(name) for name in sorted(found, key=lambda a: a.strength)]


def composed_or_why(rows: Sequence[LedgerEntry], adversary: str) -> tuple[Multiset, list[str]]:
    """Return the events in an adversary's view, and why some rows have none that could be counted."""
    try:
        return composed(rows, adversary), []
    except LedgerError:
        wanted = Adversary(adversary).strength
        blind = sum(max(Adversary(a).strength for a in row.views) < wanted for row in rows)
        reason = f"{blind} of its ledger rows have no view for the adversary {adversary}"
        return Counter(), [reason]


def epsilon_by_round(
    entries: Sequence[LedgerEntry],
    *,
    run: str | None,
    silo: str,
    unit: Unit,
    adversary: str,
    accounts: Accounts,
    points: int,
) -> list[tuple[int, float]]:
    """Return epsilon of what was released by the end of some rounds, by the headline accountant, other runs included.

    Returns:
        (round, epsilon) at up to ``points`` rounds, the first and the last among them, after
        (0, what other runs had spent).
    """
    rows = [row for row in entries if row.party in (silo, EVERYBODY) and row.unit is unit]
    before = [row for row in rows if row.run != run]
    mine = sorted((row for row in rows if row.run == run), key=lambda row: row.round)
    rounds = sorted({row.round for row in mine})
    curve = []
    for last in [0, *_spread(rounds, points)]:
        events = composed(before + [row for row in mine if row.round <= last and last], adversary)
        for name in HEADLINE:
            figure = accounts.figure(name, events)
            if figure is not None and figure.epsilon is not None:
                curve.append((last, figure.epsilon))
                break
    return curve


def trainings(rows: Iterable[LedgerEntry]) -> list[tuple[float, float, int]]:
    """Return (sampling rate, noise multiplier, number) of the Gaussian mechanisms, from the server's view (of sums over
    silos: of the sum), or the outsider's where the server sees the values without noise."""
    found: Counter[tuple[float, float]] = Counter()
    for row in rows:
        events = composed([row], SUM_ONLY)
        if not all(is_private(event) for event in events):
            events = composed([row], OUTSIDER)
        for event, count in events.items():
            rate, inner = 1.0, event
            if isinstance(event, dp.TruncatedSubsampledGaussianDpEvent):
                rate, inner = event.sampling_probability, dp.GaussianDpEvent(event.noise_multiplier)
            if isinstance(event, dp.PoissonSampledDpEvent):
                rate, inner = float(event.sampling_probability), event.event
            if isinstance(inner, VectorNoiseDpEvent | DiscreteGaussianSumDpEvent):
                inner = as_accounted(inner)
            if isinstance(inner, dp.GaussianDpEvent):
                found[rate, float(inner.noise_multiplier)] += count
    return [(rate, noise, count) for (rate, noise), count in sorted(found.items())]


def no_guarantee_reasons(events: Mapping[DpEvent, int]) -> list[str]:
    """Return the reasons why a multiset of events gives no guarantee; empty if each event gives one."""
    reasons = []
    for event in events:
        if not is_private(event):
            reason = getattr(event, "reason", "") or describe_event(event)
            reasons.append(reason or "a release without privacy, no reason recorded")
    return sorted(set(reasons))


def describe_event(event: DpEvent) -> str:
    """Return an event in words, with its parameters."""
    if isinstance(event, dp.NonPrivateDpEvent):
        reason = getattr(event, "reason", "") or "no reason recorded"
        return f"released without privacy: {reason}"
    if isinstance(event, dp.GaussianDpEvent):
        return f"Gaussian mechanism, noise multiplier {event.noise_multiplier:.6g}"
    if isinstance(event, PureDpEvent):
        return f"a mechanism of pure privacy (a noisy choice), epsilon {event.epsilon:.6g}"
    if isinstance(event, DiscreteGaussianDpEvent):
        return f"discrete Gaussian, sigma {event.sigma:.6g}, sensitivity {event.sensitivity}"
    if isinstance(event, DiscreteGaussianSumDpEvent):
        shares = f"{event.shares} shares" if event.shares > 1 else "one share"
        return f"integers with {shares} of discrete Gaussian noise, sigma {event.sigma:.6g}, sensitivity {event.sensitivity:.6g}"
    if isinstance(event, ScalarNoiseDpEvent | VectorNoiseDpEvent):
        values = ", ".join(f"{name} {value:.6g}" for name, value in event.parameters)
        what = "one number" if isinstance(event, ScalarNoiseDpEvent) else "a vector"
        return f"{what} with {event.family} noise, {values}"
    if isinstance(event, dp.TruncatedSubsampledGaussianDpEvent):
        return (
            f"Poisson sampling at rate {event.sampling_probability:.6g} of {event.dataset_size} examples, cut to "
            f"{event.truncated_batch_size}, then Gaussian, noise multiplier {event.noise_multiplier:.6g}"
        )
    if isinstance(event, dp.PoissonSampledDpEvent):
        rate = event.sampling_probability
        return f"Poisson sampling at rate {rate:.6g}, then {describe_event(event.event)}"
    return f"{kind(event)} {event_to_json(event)}"


def _as_proven(row: LedgerEntry) -> str:
    proven = proven_relation(row)
    same = proven is None or proven.value == row.details["relation"]
    return "" if same else f" (its number of examples was public: {proven})"


def _unusable(rows: Iterable[LedgerEntry], unit: Unit, relation: Relation) -> list[str]:
    reasons = set()
    for row in rows:
        if row.unit is not unit:
            reasons.add(
                f"run {row.run} recorded releases for the privacy unit {row.unit.value}, which do "
                f"not compose with the unit {unit.value}"
            )
        elif not composes(row, relation):
            reasons.add(
                f"run {row.run} recorded releases for the relation {row.details['relation']}"
                f"{_as_proven(row)}, which do not compose with {relation.value}"
            )
    return sorted(reasons)


def _spread(values: Sequence[int], points: int) -> list[int]:
    if len(values) <= points:
        return list(values)
    step = (len(values) - 1) / (points - 1)
    return [values[round(i * step)] for i in range(points)]
