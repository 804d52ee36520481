"""Evaluation by the server on its own examples, and the view of what the silos have spent."""

from __future__ import annotations

import logging

from fedllm.data.silos import evaluation_set
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings
from fedllm.silo.process import use_threads
from fedllm.tasks.generation import Generation
from server.strategy import PrefixStrategy


class ServerEvaluator:
    """Evaluates the released model on the server's examples, and reports the silos' spending.

    Args:
        settings: of the run.
        strategy: whose model, view of what was spent and records these are.
        threads: CPU threads of an evaluation.
    """

    def __init__(self, settings: Settings, strategy: PrefixStrategy, threads: int) -> None:
        self.threads = max(threads, settings.simulation.threads)
        self.settings = settings
        self.strategy = strategy
        self.features = strategy.tunable.task.features(evaluation_set(settings).records)

    def evaluate(self, server_round: int) -> None:
        """Evaluate the model after a round, and emit the figures."""
        settings, params = self.settings, self.strategy.model.released
        tunable = self.strategy.tunable
        use_threads(self.threads)
        try:
            metrics = tunable.evaluate(params, self.features, settings.client.max_tokens)
            last = server_round == settings.server.rounds
            if last and isinstance(tunable.task, Generation) and settings.evaluation.generate:
                chosen = self.features[: settings.evaluation.generate]
                metrics |= tunable.writing_metrics(
                    params, chosen, settings.evaluation.max_new_tokens
                )
        finally:
            use_threads(settings.simulation.threads)
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
        if not any(record.get("where") == "server" for record in found):
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
