"""Spending of each silo, as far as the server knows: for the live view and the curves.

The silos' own ledgers decide. This view follows from what the silos say of their mechanism (noise,
sampling rate, steps: all public), and is brought up to date only when it is looked at.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from dp_accounting.dp_event import DpEvent

from fedllm.budget.limits import (
    MOST_MECHANISMS,
)
from fedllm.budget.sums.terms import SumTerms
from fedllm.flatness.duplicate import duplicate_events
from fedllm.flatness.layer_release import make_score_release
from fedllm.settings.experiment import Settings
from fedllm.silo.evaluation import make_count_release
from fedllm.training.mechanism import Mechanism, make_mechanism
from fedllm.training.statistics import make_statistics_release
from fedllm.training.sum_share.mechanism import SumShare
from privacy.accountants import Accountant, make_accountant
from privacy.events.serialization import event_from_json, event_to_json
from privacy.guarantee import Relation

log = logging.getLogger("fedllm")


class _Told(NamedTuple):
    """A silo's mechanism as it told of it last: sampling rate, noise multiplier and steps."""

    numbers: tuple[float, float, int]
    mechanism: Mechanism
    beside: Counter[DpEvent]
    """Events of a round besides the mechanism's."""


class SpendingView:
    """Counts of events by silo, against the adversary that the settings protect from.

    Attributes:
        terms: of the sums over silos (``privacy.noise_by = "sum"``), to be set before the first round.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.events: dict[str, Counter[DpEvent]] = {}
        self.mechanism: dict[str, dict[str, float]] = {}
        self.terms: SumTerms | None = None
        self._made: dict[str, _Told] = {}

    def add_training(
        self,
        silo: str,
        server_round: int,
        *,
        sampling_rate: float,
        noise_multiplier: float,
        steps: int,
    ) -> None:
        """A round of training by ``silo``, in ``steps`` local steps.

        Raises:
            ValueError: a rate, a noise multiplier or a number of steps out of range, or a silo that tells
                another mechanism in each round (which only makes the accountants slow); nothing is changed.
        """
        numbers = (sampling_rate, noise_multiplier, steps)
        told = self._made.get(silo)
        if told is None or told.numbers != numbers:
            own = self.settings.for_silo(silo)
            client = own.client.model_copy(update={"local_steps": steps})
            mechanism = make_mechanism(
                own.model_copy(update={"client": client}),
                sampling_rate=sampling_rate,
                noise_multiplier=noise_multiplier,
            )
            if isinstance(mechanism, SumShare):
                if self.terms is None:
                    raise ValueError("a sum over silos before its terms are known")
                mechanism = mechanism.among(self.terms.silos, self.terms.dimension)
            told = self._made[silo] = _Told(numbers, mechanism, duplicate_events(own))
        found = told.mechanism.events(server_round) + told.beside
        counts = self.events.get(silo, Counter()) + found
        if len(counts) > MOST_MECHANISMS:
            raise ValueError(f"more than {MOST_MECHANISMS} mechanisms of {silo} in one run")
        self.mechanism[silo] = {
            "sampling_rate": sampling_rate,
            "noise_multiplier": noise_multiplier,
            "steps": steps,
        }
        self.events[silo] = counts

    def add_evaluation(self, silo: str) -> None:
        """An evaluation by ``silo``."""
        self.events.setdefault(silo, Counter()).update(make_count_release(self.settings).events())

    def add_statistics(self, silo: str, sampling_rate: float) -> None:
        """The statistics that ``silo`` released before training."""
        found = make_statistics_release(self.settings.for_silo(silo)).events(sampling_rate)
        self.events.setdefault(silo, Counter()).update(found)

    def add_scores(self, silo: str, sampling_rate: float) -> None:
        """One release of layers' scores by ``silo``, which trains at this sampling rate."""
        found = make_score_release(self.settings.for_silo(silo)).events(sampling_rate)
        self.events.setdefault(silo, Counter()).update(found)

    def target(self, silo: str) -> dict[str, float | None]:
        """Bounds of one silo: on all runs, on this run, and the delta of both."""
        privacy = self.settings.for_silo(silo).privacy
        if privacy.mode == "none":
            return {"target_epsilon": None, "target_run_epsilon": None, "delta": privacy.delta}
        return {
            "target_epsilon": privacy.epsilon,
            "target_run_epsilon": privacy.run_epsilon,
            "delta": privacy.delta,
        }

    def epsilon(self) -> dict[str, float]:
        """Epsilon of each silo so far at its own delta; equal histories are accounted once.

        Infinite where the accountant cannot account for what a silo says of itself.
        """
        privacy = self.settings.privacy
        accountant = make_accountant(privacy.accountant, Relation(privacy.relation))
        found: dict[tuple[float, frozenset[tuple[DpEvent, int]]], float] = {}
        result = {}
        for silo, counts in sorted(self.events.items()):
            delta = self.settings.for_silo(silo).privacy.delta
            events = frozenset(counts.items())
            if (delta, events) not in found:
                found[delta, events] = _epsilon(accountant, counts, delta)
            result[silo] = found[delta, events]
        return result

    def copy(self) -> SpendingView:
        """The view as it is now, to fall back to."""
        view = SpendingView(self.settings)
        view.terms = self.terms
        view.mechanism = dict(self.mechanism)
        view._made = self._made
        view.events = {silo: counts.copy() for silo, counts in self.events.items()}
        return view

    def to_plain(self) -> dict[str, Any]:
        """Return the values for a checkpoint."""
        return {
            "mechanism": self.mechanism,
            "events": {
                silo: [[event_to_json(event), count] for event, count in counts.items()]
                for silo, counts in self.events.items()
            },
        }

    def load_plain(self, plain: Mapping[str, Any]) -> None:
        """Inverse of :meth:`to_plain`."""
        self.mechanism = {silo: dict(value) for silo, value in plain["mechanism"].items()}
        self.events = {
            silo: Counter({event_from_json(text): int(count) for text, count in rows})
            for silo, rows in plain["events"].items()
        }


def _epsilon(accountant: Accountant, counts: Counter[DpEvent], delta: float) -> float:
    try:
        return float(accountant.epsilon(counts, delta))
    except (
        ValueError,
        ArithmeticError,
        MemoryError,
    ) as error:  # no bound is known, and the run goes on
        log.warning("no epsilon of what a silo says it released: %s", error)
        return math.inf
