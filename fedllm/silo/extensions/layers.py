"""A silo's scores of the layers that carry a prefix, for the server's choice among them.

Guarantee: that of :mod:`fedllm.flatness.layer_release`; the events are those of the same release.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedllm import messages as names
from fedllm.budget.account import SCORES, SiloAccount
from fedllm.data.batches import Feature
from fedllm.flatness.layer_scores import check_candidates
from fedllm.silo.extensions.base import Answer, Respond, SiloExtension
from fedllm.silo.task import SiloTask
from fedllm.silo.task_form import TaskForm, layers
from fedllm.training.steps import Streams


class SiloScores(SiloExtension):
    """Scores the candidates that a request names.

    Args:
        keep: ``layers.keep``.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def brings(self, kind: str) -> TaskForm:
        return TaskForm({names.CANDIDATES: layers} if kind == names.ASK_SCORES else {})

    def check(self, task: SiloTask) -> None:
        """Refuse candidates that carry no prefix, or so few that there is no choice.

        Raises:
            ValueError: they are such.
        """
        if task.kind != names.ASK_SCORES:
            return
        candidates = task.extras[names.CANDIDATES]
        check_candidates(self.run.tunable.part(task.params)[0], candidates)
        if len(candidates) <= self.keep:
            raise ValueError(
                f"Expected more candidates than layers.keep={self.keep}, got {list(candidates)}"
            )

    def requests(self) -> Mapping[str, Respond]:
        return {names.ASK_SCORES: self.scores}

    def scores(self, task: SiloTask, account: SiloAccount) -> Answer:
        """Release the scores, with the silo's sampling rate in training.

        Raises:
            BudgetExceeded: nothing was done, nothing recorded.
        """
        run, candidates = self.run, task.extras[names.CANDIDATES]
        tunable, start = run.tunable.part(task.params)

        def released(features: list[Feature], streams: Streams) -> Tensor:
            return account.scores.release(
                tunable,
                start,
                features,
                candidates,
                sampling_rate=account.scores.rate(account.sampling_rate),
                streams=lambda purpose, step: streams(f"scores-{purpose}", step),
            )

        def record(key: str) -> None:
            account.spend_scores(task.round, key)

        (scores,) = run.release(task, SCORES, [released], record, run.train_features)
        return Answer(
            {names.SCORES: {names.SCORES: scores}}, {names.SAMPLING_RATE: account.sampling_rate}
        )
