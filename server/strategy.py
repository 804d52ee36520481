"""The Flower Strategy: which silos train, what they are sent, and what is done with what they answer.

Guarantee: everything here is post-processing of what the silos released. With noise by the server
(``privacy.noise_by = "server"``) the extension :mod:`server.extensions.central_noise` records and adds it before
the new model exists. What the replies come to is :mod:`server.round_update`, how the model moves
:mod:`server.global_model`; optional parts are a list of :mod:`server.extensions.base`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedllm.budget.schedule import is_evaluation_round
from fedllm.silo.evaluation import make_count_release
from server.aggregation import tensor_bytes
from server.nodes.exchange import exchange
from server.replies import RunStopped, sort_replies
from server.replies.evaluation import least_count, read_evaluation
from server.replies.unusable import record_unusable
from server.round_update import RoundUpdate
from server.run_state import RunState


class RoundStrategy(RunState, Strategy):
    """Federated prefix-tuning with equal weights, a server optimiser, and tolerated failures.

    Its state, and what it is made of, is :class:`server.run_state.RunState`.
    """

    # -- Flower's interface ----------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One task for each silo of this round that is still in the run."""
        drawn = self.draws.silos(server_round, self.model.params)
        chosen: Sequence[str] = self.staying(drawn)
        for extension in self.extensions:
            chosen = extension.taking_part(chosen, server_round)
        return self.tasks(MessageType.TRAIN, chosen, server_round, arrays, config)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One task for each silo, where the settings ask the silos to evaluate this round."""
        asked = self.settings.evaluation.by_silos
        if not asked or not is_evaluation_round(self.settings, server_round):
            return []
        chosen = self.staying(sorted(self.nodes))
        return self.tasks(MessageType.EVALUATE, chosen, server_round, arrays, config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message | None]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, take the mean of the good ones, move the model.

        Raises:
            RunStopped: more replies failed than ``server.max_failures`` tolerates.
        """
        before = self.spending.copy()
        try:
            return self._aggregate(server_round, list(replies))
        except RunStopped:
            self.spending = before  # the round did not happen
            raise

    def _aggregate(
        self, server_round: int, replies: Sequence[Message | None]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        timeout = self.settings.server.timeout
        reading = RoundUpdate(
            settings=self.settings,
            run_id=self.run_id,
            server_round=server_round,
            params=self.tunable.part(self.model.params, server_round)[1],
            clip=self.clip,
            silos=len(self.nodes),
            sizes=self.sizes,
            spending=self.spending,
            extensions=self.extensions,
            laws=self.laws,
        )
        found = sort_replies(self.asked, replies, reading.read, timeout)
        reading.check(found)
        accepted, left = found.accepted, found.left
        for extension in self.extensions:
            extension.require(found)
            extension.forget(found.without_codec)
        record = self.record | {
            "replied": len(accepted),
            "failed": found.failed,
            "refused": found.refused,
            "left": left,
            "bytes_up": sum(c.bytes for c in accepted),
        }
        most = self.settings.server.max_failures
        asked = self.draws.share_of(len(self.asked))
        found.require(asked, most, f"round {server_round}")
        for item in left:
            self.left[item["silo"]] = item["reason"]
        known = set(self.left)
        mean = reading.mean(accepted)
        out = sorted(item for item in self.left.items() if item[0] not in known)
        left += [{"silo": name, "reason": reason} for name, reason in out]
        # A trusted server may have left silos out, and adds its noise to a sum of none as well.
        moved = mean.update is not None
        counted = [c for c in accepted if c.silo not in self.left and moved]
        self.trained = self.trained or bool(counted)
        rate = self.model.rate(server_round)
        norm = self.model.move(mean.update, mean.noise_std, server_round)
        for extension in self.extensions:
            self.model.params, metrics = extension.after_move(
                self.model.params, mean, counted, server_round
            )
            record |= metrics
        self.model.move_average()
        self.moved_rounds = server_round
        record |= {"update_norm": norm, "learning_rate": rate}
        self.record = record
        return self.arrays(), MetricRecord({"replied": len(accepted), "update-norm": norm})

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message | None]
    ) -> MetricRecord | None:
        """Sum of the silos' (noisy) counts; None where no silo evaluated."""
        least = least_count(make_count_release(self.settings))
        found = sort_replies(
            self.asked,
            list(replies),
            lambda name, content: (name, read_evaluation(content, least)),
            self.settings.server.timeout,
        )
        record_unusable(self.emit, server_round, "the evaluation by the silos", found)
        for item in found.left:
            self.left[item["silo"]] = item["reason"]
        for name, _ in found.accepted:
            self.spending.add_evaluation(name)
        correct = sum(reply.correct for _, reply in found.accepted)
        count = sum(reply.count for _, reply in found.accepted)
        answered = len(found.accepted)
        if answered == 0 or count <= 0:
            return None
        result = {"accuracy": min(1.0, max(0.0, correct / count)), "silos": float(answered)}
        self.emit({"kind": "evaluation", "round": server_round, "where": "silos", **result})
        return MetricRecord(dict(result))

    def summary(self) -> None:
        """Nothing to print: the run folder and the live view tell."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Any = None,
    ) -> Result:
        """Run the rounds that are left; a restored strategy goes on where it was.

        Raises:
            RunStopped: too many failures, or too few silos left.
            Stopped: ``stop`` was set; the round in progress is forgotten.
        """
        server = self.settings.server
        rounds = num_rounds or server.rounds
        wait = timeout or server.timeout
        result = Result()
        for server_round in range(self.finished_rounds + 1, rounds + 1):
            self.require_enough()
            for extension in self.extensions:
                extension.before_round(grid)
            began = time.monotonic()
            arrays = self.arrays()
            tasks = list(self.configure_train(server_round, arrays, train_config or _empty(), grid))
            delivered = 0
            for extension in self.extensions:
                delivered += extension.deliver(grid, self.asked, server_round)
            self.record = {
                "kind": "round",
                "round": server_round,
                "bytes_down": len(tasks) * _array_bytes(tasks[:1]) + delivered,
            }
            replies = exchange(
                grid, tasks, timeout=wait, stop=self.stop, on_reply=self._on_reply(server_round)
            )
            moved, metrics = self.aggregate_train(server_round, replies)
            if moved is not None:
                result.arrays = moved
            if metrics is not None:
                result.train_metrics_clientapp[server_round] = metrics
            self.record["seconds"] = time.monotonic() - began
            self.emit(self.record)
            tasks = list(
                self.configure_evaluate(
                    server_round, self.arrays(), evaluate_config or _empty(), grid
                )
            )
            if tasks:
                replies = exchange(grid, tasks, timeout=wait, stop=self.stop)
                found = self.aggregate_evaluate(server_round, replies)
                if found is not None:
                    result.evaluate_metrics_clientapp[server_round] = found
            self.finished_rounds = server_round
            if evaluate_fn is not None:
                evaluated = evaluate_fn(server_round, self.arrays())
                if evaluated is not None:
                    result.evaluate_metrics_serverapp[server_round] = evaluated
            self.after_round(server_round)
        return result

    def _on_reply(self, server_round: int) -> Any:
        done = 0

        def tell(reply: Message) -> None:
            nonlocal done
            done += 1
            self.emit({"kind": "reply", "round": server_round, "done": done, "of": len(self.asked)})

        return tell


def _array_bytes(tasks: Sequence[Message]) -> int:
    """Bytes of all tensors that tasks carry."""
    records = [record for task in tasks for record in task.content.array_records.values()]
    return sum(tensor_bytes(record.to_torch_state_dict()) for record in records)


def _empty() -> ConfigRecord:
    return ConfigRecord()
