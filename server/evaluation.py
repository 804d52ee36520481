"""Evaluation by the server on its own examples, and the view of what the silos have spent."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fedllm.data.batches import Feature
from fedllm.data.public import evaluation_set
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings
from fedllm.silo.process import use_threads
from fedllm.tasks.generation import Generation
from server.strategy import RoundStrategy


class ServerEvaluator:
    """Evaluates the released model on the server's examples, and tells what the silos have spent.

    Args:
        strategy: whose model, view of what was spent and records these are.
        features: the server's own examples; without any the model is not evaluated here.
        max_tokens: padded tokens of a micro-batch.
        threads, threads_after: CPU threads of an evaluation, and of the process after it.
        last_round: the round whose evaluation writes texts.
        written: number of texts that are written.
        max_new_tokens: of a text.
    """

    def __init__(
        self,
        strategy: RoundStrategy,
        features: Sequence[Feature],
        *,
        max_tokens: int,
        threads: int,
        threads_after: int,
        last_round: int,
        written: int,
        max_new_tokens: int,
    ) -> None:
        self.strategy = strategy
        self.features = features
        self.max_tokens = max_tokens
        self.threads, self.threads_after = threads, threads_after
        self.last_round = last_round
        self.written, self.max_new_tokens = written, max_new_tokens

    def evaluate(self, server_round: int) -> None:
        """Evaluate the model after a round, and emit the figures."""
        if not self.features:
            return
        params, tunable = self.strategy.model.released, self.strategy.tunable
        use_threads(self.threads)
        try:
            metrics = tunable.evaluate(params, self.features, self.max_tokens)
            last = server_round == self.last_round
            if last and isinstance(tunable.task, Generation) and self.written:
                chosen = self.features[: self.written]
                metrics |= tunable.writing_metrics(params, chosen, self.max_new_tokens)
        finally:
            use_threads(self.threads_after)
        record = {"kind": "evaluation", "round": server_round, "where": "server", **metrics}
        self.strategy.emit(record)

    def try_evaluate(self, server_round: int) -> None:
        """Evaluate; log an error as a warning and a missing number, since the round is paid for and saved."""
        try:
            self.evaluate(server_round)
        except Exception as error:
            message = (
                f"the server's evaluation of round {server_round} failed, and its figures are missing: "
                f"{type(error).__name__}: {error}"
            )
            logging.getLogger("fedllm").debug(message, exc_info=error)
            self.strategy.emit({"kind": "warning", "round": server_round, "message": message})

    def catch_up(self, run: RunFolder, server_round: int) -> None:
        """Evaluate a restored round whose evaluation failed or was cut off after its checkpoint."""
        found = [
            r for r in run.metrics() if r["kind"] == "evaluation" and r["round"] == server_round
        ]
        told = any(r["kind"] == "silo" and r["round"] == server_round for r in run.metrics())
        evaluated = any(record.get("where") == "server" for record in found)
        if not evaluated if self.features else not told:
            self.try_evaluate(server_round)
            self.report_spending(server_round)

    def report_spending(self, server_round: int) -> None:
        """Emit each silo's epsilon so far."""
        for silo, epsilon in self.strategy.spending.epsilon().items():
            mechanism = self.strategy.spending.mechanism.get(silo, {})
            self.strategy.emit(
                {
                    "kind": "silo",
                    "round": server_round,
                    "silo": silo,
                    "epsilon": epsilon,
                    **self.strategy.spending.target(silo),
                    **mechanism,
                }
            )


def make_evaluator(settings: Settings, strategy: RoundStrategy, threads: int) -> ServerEvaluator:
    """Return the evaluator of a run.

    Args:
        threads: CPU threads of an evaluation; at least those of a simulation's worker are used.

    Raises:
        DataError: the server's examples cannot be read.
    """
    evaluation, after = settings.evaluation, settings.simulation.threads
    return ServerEvaluator(
        strategy,
        strategy.tunable.task.features(evaluation_set(settings).records),
        max_tokens=settings.client.max_tokens,
        threads=max(threads, after),
        threads_after=after,
        last_round=settings.server.rounds,
        written=evaluation.generate,
        max_new_tokens=evaluation.max_new_tokens,
    )
