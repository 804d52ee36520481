"""A silo's spending: check budgets and write ledger rows before anything leaves.

One silo's account for one run. It has the silo's noise multiplier calibrated (:mod:`fedllm.budget.calibration`) for
what the run plans and for what the ledger already holds (other runs on the same data), fixes the run's plan with its
first release (:mod:`fedllm.budget.silo_plan`), refuses a plan *before* it would exceed a budget (``privacy.epsilon`` over
all runs on the ledger, ``privacy.run_epsilon`` over this one) and a release that is outside of the plan, and
records each event durably before the noisy value is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from dp_accounting.dp_event import DpEvent, NoOpDpEvent

from fedllm.budget.calibration import TrainingPlan
from fedllm.budget.limits import (
    PlannedBeside,
    bounds_of,
    events_beside,
    planned_beside,
    protected_from,
    requests_beside,
    split_bounds,
)
from fedllm.budget.local_policy import LocalPolicy
from fedllm.budget.plan import check_evaluations, planned_evaluations
from fedllm.budget.recorded_rows import SIZES, refuse_other_units, refuse_public_sizes
from fedllm.budget.schedule import planned_evaluation_rounds, sampling_rate
from fedllm.budget.silo_plan import PlanBook, Proposal, private_part, recorded_anew
from fedllm.budget.sums.terms import SumTerms
from fedllm.budget.sums.views import row_views
from fedllm.flatness.duplicate import duplicate_events
from fedllm.flatness.layer_release import make_score_release
from fedllm.settings.experiment import Settings
from fedllm.silo.evaluation import make_count_release
from fedllm.training.mechanism import make_mechanism
from fedllm.training.noise import multiplier_of_scale
from fedllm.training.statistics import make_statistics_release
from privacy.accountants import make_accountant
from privacy.budget import BudgetExceeded
from privacy.events.multiset import is_private, multiset
from privacy.events.views import with_colluders
from privacy.guarantee import Relation, Unit
from privacy.ledger.ledger import Ledger, LedgerEntry
from privacy.run_plan import RunPlan

TRAIN = "train"
EVALUATE = "evaluate"
STATISTICS = "statistics"
SCORES = "layer-scores"


class SiloAccount:
    """The account of one party (a silo) in one run.

    Args:
        settings: the experiment's settings; the party's own values (``privacy.silos``) hold for it.
        run: the run's id; entries of other runs in the same ledger count as spent before.
        party: the silo's name.
        examples: number of the silo's training examples.
        rounds: in which this silo is planned to take part; ``privacy.spare_rounds`` more are in its plan.
        ledger: the silo's open ledger.
        own: what the silo itself allows, in its own file; None where it has no say of its own (simulation).
        beside: what is released beside what the settings plan.

    Attributes:
        sampling_rate: of each example in each local step.
        mechanism: of the silo in the run: what a round costs and releases.
        counts, scores, statistics: what it releases in an evaluation, for a choice of layers, and for the codec.
        terms: of the sums, once they are known; None where there are none.
        clip: clipping norm that the next row tells of; adaptive clipping moves it, at no cost.
        bounds: the budgets that each step must keep to.

    Raises:
        BudgetExceeded: other runs on the ledger have left no room for this one.
        ValueError: no noise multiplier reaches the target whatever other runs spent, or the ledger
            holds what this party spent for another privacy unit, or with a public number of examples under
            a relation that needs a secret one (they do not compose); the message says so.
        LimitRefused: the silo's own limits do not allow the mechanism.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        run: str,
        party: str,
        examples: int,
        rounds: int,
        ledger: Ledger,
        own: LocalPolicy | None = None,
        beside: Sequence[PlannedBeside] = (),
    ) -> None:
        self.settings = settings = settings.for_silo(party)
        self.own = own
        self.beside = beside
        if own is not None:
            own.check_kind(settings)
        self.run = run
        self.party = party
        self.rounds = rounds + settings.privacy.spare_rounds if rounds else 0
        self.ledger = ledger
        self.unit = Unit(settings.privacy.unit)
        self.relation = Relation(settings.privacy.relation)
        self.private = settings.privacy.mode == "dp"
        self.adversary = protected_from(settings)
        self.book = PlanBook(ledger, run=run, party=party, unit=self.unit, adversary=self.adversary)
        refuse_other_units(ledger, party, self.unit)
        if Relation.ADD_OR_REMOVE_ONE in (self.relation, own and own.relation):
            refuse_public_sizes(ledger, party, self.unit)
        self.sampling_rate = sampling_rate(settings, examples)
        self.counts = make_count_release(settings)
        self.scores = make_score_release(settings)
        self.statistics = make_statistics_release(settings)
        self.clip = settings.privacy.clip
        self.bounds = bounds_of(settings) if self.private else ()
        if own is not None:
            self.bounds += (own.bound(),)
        self._beside = duplicate_events(settings) + events_beside(beside, settings.privacy.noise_by)
        self._viewed: tuple[Counter[DpEvent], dict[str, DpEvent]] | None = None
        self._others = -1  # rows of other runs and units when their units were compared
        self.noise_multiplier = 0.0  # makes the mechanism that the noise is looked for
        self.terms: SumTerms | None = None
        if self.private:
            self.noise_multiplier = self._noise_multiplier()
            if (stored := self.book.stored_terms()) is not None:
                self.join_sum(stored)
        if own is not None:
            trains = self.private and self.rounds > 0
            own.check_mechanism(self.sampling_rate, self.noise_multiplier, trains)

    # -- events ----------------------------------------------------------------------------------

    @property
    def noise_multiplier(self) -> float:
        """Noise standard deviation over sensitivity."""
        return self.mechanism.noise_multiplier

    @noise_multiplier.setter
    def noise_multiplier(self, value: float) -> None:
        self.mechanism = make_mechanism(
            self.settings, sampling_rate=self.sampling_rate, noise_multiplier=value
        )

    def join_sum(self, terms: SumTerms) -> None:
        """Take the terms of a run with ``privacy.noise_by = "sum"``; call before anything is recorded.

        Raises:
            LimitRefused, ValueError: as :meth:`SumTerms.check` and :meth:`SumTerms.joined`.
            BudgetExceeded: the silo's own budget is against the server, and a share alone costs more.
        """
        before = self.mechanism
        terms.check(before.noise_multiplier, self.terms or self.book.stored_terms())
        self.mechanism = terms.joined(before)
        if self.rounds and self.book.stored_row() is None:
            _, stronger = split_bounds(self.bounds, self.adversary)
            try:
                self.book.admit(stronger, self._plan_of(self.rounds))
            except BudgetExceeded:
                self.mechanism = before
                raise
        self.terms = terms

    def training_events(self, server_round: int) -> Counter[DpEvent]:
        """The events of one round of training, those of a teacher that is trained without privacy included."""
        return self.mechanism.events(server_round) + self._beside

    @property
    def steps(self) -> int:
        """Mechanisms of one round of training whose noise is calibrated."""
        return self.mechanism.cost().mechanisms

    def evaluation_events(self) -> Counter[DpEvent]:
        """The events of one evaluation by the silo; empty where there is none."""
        return self.counts.events()

    def statistics_events(self) -> Counter[DpEvent]:
        """The events of the statistics before training; empty where there are none."""
        return self.statistics.events(self.sampling_rate)

    def score_events(self) -> Counter[DpEvent]:
        """The events of one release of layers' scores; empty where there is none."""
        return self.scores.events(self.sampling_rate)

    def planned(self) -> Counter[DpEvent]:
        """All events that this run plans for this silo."""
        total: Counter[DpEvent] = Counter()
        for events in self._purposes(self.rounds).values():
            total.update(events)
        return total

    def _purposes(self, rounds: int) -> dict[str, Counter[DpEvent]]:
        """All events of a run with so many rounds of training, by purpose."""
        found: dict[str, Counter[DpEvent]] = {}
        if self.rounds:
            # Perturbed rounds come first; which rounds the silo takes part in changes no cost.
            training: Counter[DpEvent] = Counter()
            perturbed = min(self.settings.awp.rounds or rounds, rounds)
            for first, number in ((1, perturbed), (perturbed + 1, rounds - perturbed)):
                for event, count in self.training_events(first).items():
                    training[event] += count * number
            found[TRAIN] = multiset(+training)
            found[STATISTICS] = self.statistics_events()
            found[SCORES] = self.scores.planned(self.sampling_rate)
            found |= requests_beside(self.beside, self.sampling_rate)
        evaluations = planned_evaluation_rounds(self.settings)
        found[EVALUATE] = Counter(
            {event: count * evaluations for event, count in self.evaluation_events().items()}
        )
        return {purpose: events for purpose, events in found.items() if events}

    # -- the run's plan --------------------------------------------------------------------------

    def plan(self) -> RunPlan:
        """The run's plan: the ledger's, once it has one; else what is planned now.

        The latter has as many rounds of training as the budgets have room for, at most those of the task: a
        noise multiplier that is given by hand may be too small for all of them.

        Raises:
            BudgetExceeded: there is no room for one.
        """
        stored = self.book.stored()
        if stored is not None:
            return stored
        whole = self._plan_of(self.rounds)
        if not self.private or self._fits(whole):
            return whole
        low, high = 0, self.rounds
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(self._plan_of(middle)) else (low, middle)
        if low == 0:
            self.book.admit(self.bounds, self._plan_of(min(1, self.rounds)))
        return self._plan_of(low)

    def _plan_of(self, rounds: int) -> RunPlan:
        return RunPlan(
            {purpose: self._views(events) for purpose, events in self._purposes(rounds).items()}
        )

    def _fits(self, plan: RunPlan) -> bool:
        try:
            self.book.admit(self.bounds, plan)
        except BudgetExceeded:
            return False
        return True

    def proposal(self) -> Proposal | None:
        """The row that fixes the run's plan, where the ledger has none yet; None also for a run that plans
        nothing with a guarantee.

        Raises:
            BudgetExceeded: the budgets have no room for the plan.
        """
        if self.book.stored_row() is not None:
            return None
        plan = self.plan()
        if not private_part(plan.events(self.adversary)):
            return None
        return self.book.proposal(
            self.bounds, plan, self.details(), with_colluders(NoOpDpEvent(), self._colluding)
        )

    def spent(self) -> Counter[DpEvent]:
        """All events in the ledger for this party, of this run and others."""
        return self.ledger.spent(self.adversary, party=self.party, unit=self.unit)

    def spent_before(self) -> Counter[DpEvent]:
        """Events of other runs on the same data."""
        before = self.spent()
        before.subtract(self.ledger.spent(self.adversary, party=self.party, run=self.run))
        return +before

    def epsilon(self) -> float:
        """Epsilon spent so far, by the accountant that calibrates; infinite without a guarantee."""
        accountant = make_accountant(self.settings.privacy.accountant, self.relation)
        return float(accountant.epsilon(self.spent(), self.settings.privacy.delta))

    # -- noise -----------------------------------------------------------------------------------

    def _noise_multiplier(self) -> float:
        privacy = self.settings.privacy
        if privacy.noise_multiplier is not None:
            return privacy.noise_multiplier
        if (scaled := multiplier_of_scale(self.settings)) is not None:
            return scaled
        if (stored := self.book.stored_noise()) is not None:
            return stored  # resumed: the run keeps the noise that it began with
        for entry in self.ledger.entries(party=self.party, run=self.run):
            if entry.purpose == TRAIN:  # begun before plans were kept
                return float(str(entry.details["noise_multiplier"]))
        check_evaluations(self.settings, self.party)
        if self.rounds == 0:
            return 0.0  # never trains; a training event without noise is refused
        plan = TrainingPlan(
            party=self.party,
            cost=self.mechanism.cost(),
            rounds=self.rounds,
            beside=self._planned_beside_training(),
        )
        made_for, _ = split_bounds(self.bounds, self.adversary)
        return plan.noise_multiplier(made_for, self.book.sequence)

    def _planned_beside_training(self) -> Counter[DpEvent]:
        """Non-training events to reserve budget for, excluding releases that intentionally have no guarantee."""
        planned = planned_evaluations(self.settings) + self.statistics_events()
        planned += self.scores.planned(self.sampling_rate)
        planned += planned_beside(self.beside, self.rounds, self.sampling_rate)
        return Counter({event: count for event, count in planned.items() if is_private(event)})

    # -- spending --------------------------------------------------------------------------------

    def spend_training(self, server_round: int, key: str) -> bool:
        """Record one round of training, durably; call before any noise is drawn.

        Args:
            server_round: the round.
            key: names this release (see :mod:`fedllm.budget.release_id`); the same key again costs nothing.

        Returns:
            True if a new row was written, False if this very release was recorded before.

        Raises:
            BudgetExceeded: the round would exceed the budget; nothing was recorded.
            LedgerError: the row could not be written.
        """
        return self.spend(TRAIN, server_round, key, self.training_events(server_round))

    def training_entry(self, server_round: int, key: str) -> LedgerEntry:
        """Return the entry that :meth:`spend_training` records."""
        return self._entry(TRAIN, server_round, key, self.training_events(server_round))

    def admit_training(self, server_round: int, proposal: Proposal | None) -> None:
        """Ask for one round of training: it must be within the plan, and the plan within the budgets.

        Args:
            proposal: the plan that is recorded with it; None where the ledger has it.

        Raises:
            BudgetExceeded: it is not.
            StalePlan: the ledger has changed since the plan was proposed; propose again.
        """
        self._admit(self.training_events(server_round), TRAIN, proposal)

    def statistics_entry(self, key: str) -> LedgerEntry:
        """Return the entry that :meth:`spend_statistics` records."""
        return self._entry(STATISTICS, 0, key, self.statistics_events())

    def admit_statistics(self, proposal: Proposal | None) -> None:
        """Do the same as :meth:`admit_training` for the statistics before training."""
        self._admit(self.statistics_events(), STATISTICS, proposal)

    def spend_evaluation(self, server_round: int, key: str) -> bool:
        """Do the same as :meth:`spend_training` for one evaluation by the silo."""
        return self.spend(EVALUATE, server_round, key, self.evaluation_events())

    def spend_statistics(self, key: str) -> bool:
        """Do the same as :meth:`spend_training` for the statistics before training (round 0)."""
        return self.spend(STATISTICS, 0, key, self.statistics_events())

    def spend_scores(self, server_round: int, key: str) -> bool:
        """Do the same as :meth:`spend_training` for one release of layer scores."""
        return self.spend(SCORES, server_round, key, self.score_events())

    def spend(self, purpose: str, server_round: int, key: str, events: Counter[DpEvent]) -> bool:
        """Do the same as :meth:`spend_training` for events under a purpose of the run's plan."""
        entry = self._entry(purpose, server_round, key, events)
        return recorded_anew(lambda: self._recorded(entry, events), self.ledger)

    def _recorded(self, entry: LedgerEntry, events: Counter[DpEvent]) -> bool:
        """Record an entry; return True if a new row was written.

        Raises:
            StalePlan: another process wrote meanwhile; nothing was recorded.
        """
        proposal = self.proposal()
        entries = [entry] if proposal is None else [proposal.entry, entry]

        def admit(new: Sequence[LedgerEntry]) -> None:  # while no other process can write
            asked = events if new[-1].purpose == entry.purpose else Counter()
            self._admit(asked, entry.purpose, proposal)

        written = self.ledger.extend(entries, admit) > (proposal is not None)
        if proposal is not None:
            self.book.stored()
        return written

    def _entry(
        self, purpose: str, server_round: int, key: str, events: Counter[DpEvent]
    ) -> LedgerEntry:
        if self._viewed is None or self._viewed[0] != events:
            self._viewed = events, self._views(events)
        return LedgerEntry(
            run=self.run,
            party=self.party,
            unit=self.unit,
            purpose=purpose,
            round=server_round,
            key=key,
            views=self._viewed[1],
            details=self.details(),
        )

    def _admit(self, events: Counter[DpEvent], purpose: str, proposal: Proposal | None) -> None:
        others = self.ledger.others(self.party, self.run, self.unit)
        if others[0] != self._others:
            refuse_other_units(self.ledger, self.party, self.unit)
            self._others = others[0]
        asked = {event: count for event, count in events.items() if is_private(event)}
        if self.own is not None:
            self.own.check_guarantee(events.total() - sum(asked.values()))
            if purpose == TRAIN:
                mine = self.ledger.entries(party=self.party, run=self.run)
                self.own.check_rounds(sum(entry.purpose == TRAIN for entry in mine))
        if not asked and proposal is None:
            return
        plan = self.book.fixed(proposal, self.bounds)
        if self.bounds:  # else a repeated round is not refused; the report then states a condition
            self.book.check_within(plan, purpose, Counter(asked), self.bounds)
        self.book.admit(self.bounds, plan, others)

    def details(self) -> dict[str, str | float | None]:
        """Return the details of the mechanism and the budgets for each row."""
        privacy = self.settings.privacy
        return {
            "noise_multiplier": self.mechanism.noise_multiplier,
            "sampling_rate": self.sampling_rate,
            "batch_size": self.settings.client.batch_size,
            "clip": self.clip,
            "epsilon": privacy.epsilon,
            "run_epsilon": privacy.run_epsilon,
            "delta": privacy.delta,
            "relation": str(self.relation),
            SIZES: self.settings.data.sizes,
            "randomness": privacy.randomness,
        } | ({} if self.terms is None else self.terms.details())

    @property
    def _colluding(self) -> tuple[int, ...]:
        named = self.settings.privacy.colluding
        numbers = () if named == "others" else named  # a silo does not know how many there are
        mine = (self.own.colluding,) if self.own is not None and self.own.colluding else ()
        return tuple(sorted({*numbers, *mine}))

    def _views(self, events: Mapping[DpEvent, int]) -> dict[str, DpEvent]:
        noise_by = self.settings.privacy.noise_by if self.private else "client"
        return row_views(events, noise_by, self._colluding, self.mechanism)
