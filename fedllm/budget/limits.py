"""The bounds that a silo's spending must keep to.

``privacy.epsilon`` bounds what all runs on the silo's ledger spend together, ``privacy.run_epsilon`` what
one run spends. Both are asked before a step, within the ledger's own transaction
(:mod:`fedllm.budget.account`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dp_accounting.dp_event import DpEvent

from fedllm.settings.experiment import Settings
from privacy.budget import Budget, BudgetExceeded
from privacy.guarantee import Adversary, Relation

MOST_MECHANISMS = 64
"""Different events of one silo in one run; an honest one has a few."""


@dataclass(frozen=True)
class Bound:
    """One budget of a silo, and what counts against it.

    Attributes:
        setting: name of the setting that gives it.
        scope: what counts, in words.
        this_run: whether this run's events alone count, or those of all runs on the ledger.
        own: whether it is the silo's own (:mod:`fedllm.budget.local_policy`) and not the settings': then everything
            in the ledger counts, what was released without a guarantee included.
    """

    setting: str
    scope: str
    budget: Budget
    this_run: bool
    own: bool = False

    def exceeded(self, error: BudgetExceeded) -> BudgetExceeded:
        """The same refusal, with the name of this budget."""
        message = f"{self.setting} ({self.scope}): {error}"
        return BudgetExceeded(message, error.epsilon, error.target)


class PlannedBeside:
    """Releases of a run in addition to those of its settings: none, until a subclass adds some.

    The account leaves room for all of it, and records it with the rows.
    """

    def round_events(self) -> Counter[DpEvent]:
        """Return the events of what leaves in each round of training beside the update; they are in its row."""
        return Counter()

    def request_events(self, sampling_rate: float) -> Mapping[str, Counter[DpEvent]]:
        """Return all events of the run by purpose, for rows that answer requests.

        Args:
            sampling_rate: of each example in a step of training.
        """
        return {}


def events_beside(parts: Sequence[PlannedBeside], noise_by: str) -> Counter[DpEvent]:
    """Return the events of what leaves in a round beside the update and what the settings plan.

    Raises:
        ValueError: there are some where the server adds the noise: it would record the round without them.
    """
    events = sum((part.round_events() for part in parts), start=Counter[DpEvent]())
    if events and noise_by == "server":
        raise ValueError(
            "Expected privacy.noise_by=client for an extension that releases something beside each update, got "
            "privacy.noise_by=server"
        )
    return events


def requests_beside(
    parts: Sequence[PlannedBeside], sampling_rate: float
) -> dict[str, Counter[DpEvent]]:
    """Return all events by purpose of rows that answer requests beside those of the settings."""
    found: dict[str, Counter[DpEvent]] = {}
    for part in parts:
        for purpose, events in part.request_events(sampling_rate).items():
            found[purpose] = found.get(purpose, Counter()) + events
    return found


def planned_beside(
    parts: Sequence[PlannedBeside], rounds: int, sampling_rate: float
) -> Counter[DpEvent]:
    """Return all events of a run beside what the settings plan."""
    planned: Counter[DpEvent] = Counter()
    for part in parts:
        for event, count in part.round_events().items():
            planned[event] += count * rounds
    for events in requests_beside(parts, sampling_rate).values():
        planned.update(events)
    return planned


def sum_only(colluding: int) -> Adversary:
    """Return the server that learns sums and controls so many other silos."""
    return Adversary(f"sum-only:{colluding}" if colluding else "sum-only")


def protected_from(settings: Settings) -> Adversary:
    """The strongest adversary that the noise is calibrated against."""
    colluding = settings.secure.colluding
    return {
        "client": Adversary("server"),
        "server": Adversary("outsider"),
        "sum": sum_only(colluding),
    }[settings.privacy.noise_by]


def split_bounds(bounds: Sequence[Bound], adversary: Adversary) -> tuple[list[Bound], list[Bound]]:
    """Return the bounds that noise against an adversary is made for, and those against somebody stronger.

    The latter are a silo's own, for sums: noise in a sum has no size against who sees each message.
    """
    able = [bound for bound in bounds if bound.budget.adversary.strength <= adversary.strength]
    return able, [bound for bound in bounds if bound not in able]


def bounds_of(settings: Settings) -> tuple[Bound, ...]:
    """The budgets of a silo whose own settings (``Settings.for_silo``) these are."""
    privacy = settings.privacy
    found = (
        ("privacy.epsilon", "all runs on the ledger", privacy.epsilon, False),
        ("privacy.run_epsilon", "this run alone", privacy.run_epsilon, True),
    )
    return tuple(
        Bound(
            setting,
            scope,
            Budget(
                epsilon,
                privacy.delta,
                Relation(privacy.relation),
                protected_from(settings),
                privacy.accountant,
            ),
            this_run,
        )
        for setting, scope, epsilon, this_run in found
        if epsilon is not None
    )
