"""Evaluation by a silo on its own held-out examples (``evaluation.clients``).

Guarantee: that of :class:`fedllm.silo.evaluation.CountRelease`, which also has its events.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedllm import messages as names
from fedllm.budget.account import EVALUATE, SiloAccount
from fedllm.data.batches import Feature
from fedllm.silo.extensions.base import Answer, Respond, SiloExtension
from fedllm.silo.task import SiloTask
from fedllm.training.steps import Streams


class SiloEvaluation(SiloExtension):
    """Counts correct answers."""

    def requests(self) -> Mapping[str, Respond]:
        return {names.EVALUATE: self.counts}

    def counts(self, task: SiloTask, account: SiloAccount) -> Answer:
        """Release the number of correct answers and of the silo's held-out examples.

        With ``evaluation.clients = "private"`` both carry noise and may be negative: adding or removing one
        example changes each by at most 1. Discrete Gaussian noise leaves them whole numbers.

        Raises:
            BudgetExceeded: nothing was done, nothing recorded.
        """
        run = self.run

        def counted(features: list[Feature], streams: Streams) -> tuple[float, float]:
            return account.counts.release(run.tunable, task.params, features, streams)

        def record(key: str) -> None:
            account.spend_evaluation(task.round, key)

        ((correct, count),) = run.release(task, EVALUATE, [counted], record, run.held_out_features)
        return Answer(numbers={names.CORRECT: correct, names.COUNT: count})
