"""One silo in one run: answer the server's tasks with releases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_

from torch import Tensor

from fedllm.budget.account import TRAIN
from fedllm.data.batches import Feature
from fedllm.files.bounded_json import shortened
from fedllm.silo.answered import throwaway_streams
from fedllm.silo.extensions.base import Answer, Make
from fedllm.silo.silo_in_run import SiloInRun
from fedllm.silo.task import SiloTask
from fedllm.task_errors import TaskRefused, refusing
from fedllm.training.steps import LocalResult, LocalWork, Streams


@dataclass(frozen=True)
class TrainReply:
    """A silo's reply after a round: every field is released or public."""

    update: dict[str, Tensor]
    """The update, or what the mechanism releases in its place."""
    noise_std: dict[str, float] | None
    noise_multiplier: float
    sampling_rate: float
    steps: int
    beside: Answer = field(default_factory=Answer)
    """Added by the extensions."""


class SiloWorker(SiloInRun):
    """Serves one silo in one run."""

    def train(self, task: SiloTask) -> TrainReply:
        """Train for one round: record the events durably, then train, then answer.

        Raises:
            BudgetExceeded: nothing was done, nothing recorded.
            LimitRefused: tensors that do not fit the model or its bounds; nothing was done, nothing recorded.
            DeliveryMissing: something that the task needs is not here; nothing was done, nothing recorded.
            TaskRefused: extras that the settings do not ask for, or that are missing or out of range.
        """
        account = self.prepare(task)
        with refusing():
            mechanism = account.mechanism.at_silo()
            tunable, start = self.tunable.part(task.params, task.round)
            work = LocalWork(tunable, start, (), throwaway_streams, server_round=task.round)
            for extension in self.extensions:
                mechanism = extension.mechanism(mechanism, task)
                work = extension.prepare(work, task)
        account.clip = mechanism.clip
        beside: dict[str, Make] = {}
        for extension in self.extensions:
            beside |= extension.releases(task, account)

        def trained(features: list[Feature], streams: Streams) -> LocalResult:
            return mechanism.train(replace(work, features=features, streams=streams))

        def record(key: str) -> None:
            if self.settings.privacy.noise_by != "server" or not account.private:
                account.spend_training(task.round, key)
            # Otherwise the server adds the noise, and records the event before it does.

        makes = [trained, *beside.values()]
        result, *others = self.release(task, TRAIN, makes, record, self.train_features)
        self._write_log(task.round, result)
        with refusing():
            for extension in self.extensions:
                result = extension.seal(task, result)
        replies = [extension.reply(task, result) for extension in self.extensions]
        tensors: Mapping[str, Mapping[str, Tensor]] = dict(zip(beside, others, strict=True))
        return TrainReply(
            update=result.update,
            noise_std=result.noise_std,
            noise_multiplier=account.noise_multiplier,
            sampling_rate=account.sampling_rate,
            steps=self.settings.client.local_steps,
            beside=reduce(or_, replies, Answer(tensors)),
        )

    def answer(self, task: SiloTask) -> Answer:
        """Answer a task other than training, by the extension that knows it.

        Raises:
            BudgetExceeded: nothing was done, nothing recorded.
            LimitRefused: tensors that do not fit the model or its bounds; nothing was done, nothing recorded.
            TaskRefused: the settings ask for no such task, or it brings other extras than theirs.
        """
        for extension in self.extensions:
            exchange = extension.exchanges().get(task.kind)
            if exchange is not None:
                with refusing():
                    self.check_extras(task)
                    return exchange(task)
            respond = extension.requests().get(task.kind)
            if respond is not None:
                return respond(task, self.prepare(task))
        raise TaskRefused(
            f"Expected a request that the settings ask for, got {shortened(task.kind)}"
        )
