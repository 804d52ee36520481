"""One silo in one run: answer the server's tasks with releases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedllm import messages as names
from fedllm.budget.release_id import release_key
from fedllm.codec.store import codec_from_store
from fedllm.data.batches import Feature
from fedllm.flatness.duplicate import duplicate_update
from fedllm.flatness.layer_scores import check_candidates
from fedllm.silo.silo_in_run import SiloInRun
from fedllm.silo.task import SiloTask
from fedllm.task_errors import TaskRefused, refusing
from fedllm.training.black_box.directions import Directions, DirectionsPlan
from fedllm.training.encoding import Encoding
from fedllm.training.steps import LocalResult, LocalWork, StepPlan, Streams


@dataclass(frozen=True)
class TrainReply:
    """A silo's reply after a round: every field is released or public."""

    update: dict[str, Tensor]
    """The update, or the tensors of its code."""
    noise_std: dict[str, float] | None
    noise_multiplier: float
    sampling_rate: float
    steps: int
    duplicate: dict[str, Tensor] | None = None
    """Raw, without a guarantee: the update of the non-private teacher, where the settings have one."""
    below: float | None = None
    """Adaptive clipping: noisy share of norms at most the clipping norm (noise by the server: the bit)."""


class SiloWorker(SiloInRun):
    """Serves one silo in one run."""

    def train(self, task: SiloTask) -> TrainReply:
        """One round: record the events durably, then train, then answer.

        Args:
            task: its extras are, each where the settings ask for it, the version of the codec to encode the update
                by; parameters of the teacher that is trained without privacy (``teacher.kind = "nonprivate"``), whose
                events the recorded row then holds; the round's public seed of random directions
                (``model.access = "black-box"``); the norm of this round of adaptive clipping.

        Raises:
            BudgetExceeded: nothing was done, nothing recorded.
            LimitRefused: tensors that do not fit the model or its bounds; nothing was done, nothing recorded.
            CodecMissing: the codec is not here; nothing was done, nothing recorded.
            ValueError: the settings ask for a codec, a non-private teacher or a seed of directions and the
                task brings none, or the reverse; a clipping norm that is missing, out of range, or not asked for.
        """
        params, server_round = task.params, task.round
        duplicate: Mapping[str, Tensor] | None = task.extras.get(names.DUPLICATE)
        codec_version = task.extras.get(names.CODEC_VERSION, "")
        clip: float | None = task.extras.get(names.CLIP)
        if duplicate is not None:
            self.check(duplicate, "a duplicate")
        self.prepare(params)
        with refusing():
            self._check_duplicate(duplicate)
            tunable, start = self.tunable.part(params, server_round)
            along = self.directions(start, task.extras.get(names.DIRECTIONS, ""))
            encoding = self.encoding(start, codec_version)
            account = self.account(task.planned_rounds)
            mechanism = account.mechanism.at_silo().at_clip(clip)
        account.clip = mechanism.clip
        digest = self.digest(task, account.noise_multiplier)
        key = release_key(self.settings, "train", server_round, digest)
        streams = self.streams(server_round, digest)

        def trained(features: list[Feature], streams: Streams) -> LocalResult:
            return mechanism.train(
                LocalWork(
                    tunable,
                    start,
                    features,
                    streams,
                    server_round=server_round,
                    encoding=encoding,
                    directions=along,
                )
            )

        def duplicates(features: list[Feature], streams: Streams) -> dict[str, Tensor]:
            rate = account.sampling_rate
            return duplicate_update(
                *self.tunable.part(duplicate or {}, server_round),
                *(features, StepPlan.of(self.settings)),
                sampling_rate=rate,
                streams=streams,
            )

        if duplicate is not None:
            self._try("a duplicate", lambda streams: duplicates([], streams))
        self._try(f"train {codec_version} {clip}", lambda streams: trained([], streams))
        if self.settings.privacy.noise_by == "client" or not account.private:
            account.spend_training(server_round, key)
        # Otherwise the server adds the noise, and records the event before it does.
        result = self._answered(lambda features: trained(features, streams), self.train_features)
        self._write_log(server_round, result)
        raw = None
        if duplicate is not None:
            raw = self._answered(
                lambda features: duplicates(features, streams), self.train_features
            )
        return TrainReply(
            update=result.update,
            noise_std=result.noise_std,
            noise_multiplier=account.noise_multiplier,
            sampling_rate=account.sampling_rate,
            steps=self.settings.client.local_steps,
            duplicate=raw,
            below=result.below,
        )

    def _check_duplicate(self, duplicate: Mapping[str, Tensor] | None) -> None:
        """The settings decide what the ledger records: a raw update is sent only where they say so."""
        kind = self.settings.teacher.kind
        if (duplicate is not None) != (kind == "nonprivate"):
            raise ValueError(
                f"Expected {'a' if kind == 'nonprivate' else 'no'} duplicate to train with the task for "
                f"teacher.kind={kind}, got {'none' if duplicate is None else 'one'}"
            )

    def directions(self, params: Mapping[str, Tensor], seed: str) -> Directions | None:
        """The random directions of a round; None for a model that is trained by gradients."""
        access = self.settings.model.access
        if bool(seed) != (access == "black-box"):
            raise ValueError(
                f"Expected {'a' if access == 'black-box' else 'no'} seed of directions with the task for "
                f"model.access={access}, got {seed!r}"
            )
        return Directions(DirectionsPlan.of(self.settings), params, seed) if seed else None

    def encoding(self, params: Mapping[str, Tensor], version: str) -> Encoding | None:
        """Return this round's encoding of the update."""
        if bool(version) != self.settings.codec.active:
            raise ValueError(
                f"Expected {'a' if self.settings.codec.active else 'no'} codec with the task for "
                f"codec.name={self.settings.codec.name}, got version={version!r}"
            )
        if not version:
            return None
        return Encoding.of(codec_from_store(version), version, self.settings, params)

    def statistics(self, params: Mapping[str, Tensor], planned_rounds: int) -> tuple[Tensor, float]:
        """The silo's noisy statistics at ``params``, and its sampling rate.

        With noise by the server they carry none, and it is the server that records the event.

        Raises:
            BudgetExceeded: nothing was done, nothing recorded.
            ValueError: the settings ask for no statistics.
        """
        if not self.settings.codec.asks_silos:
            raise TaskRefused(
                "Expected no request for statistics: the codec is not fitted to private ones"
            )
        self.prepare(params)
        with refusing():
            account = self.account(planned_rounds)
        tunable, start = self.tunable.part(params)
        task = SiloTask(params, 0, planned_rounds, kind=names.ASK_STATISTICS)
        digest = self.digest(task, account.noise_multiplier)
        rate = account.sampling_rate

        def release(features: list[Feature], streams: Streams) -> Tensor:
            return account.statistics.release(
                tunable,
                start,
                features,
                sampling_rate=rate,
                streams=lambda purpose, step: streams(f"statistics-{purpose}", step),
            )

        self._try("statistics", lambda streams: release([], streams))
        if self.settings.privacy.noise_by == "client" or not account.private:
            account.spend_statistics(release_key(self.settings, "statistics", 0, digest))
        streams = self.streams(0, digest)
        released = self._answered(lambda features: release(features, streams), self.train_features)
        return released, rate

    def scores(
        self,
        params: Mapping[str, Tensor],
        candidates: Sequence[int],
        server_round: int,
        planned_rounds: int,
    ) -> tuple[Tensor, float]:
        """The silo's scores of the candidate layers at ``params`` as they may leave it, and its
        sampling rate in training.

        Raises:
            BudgetExceeded: nothing was done, nothing recorded.
            ValueError: the settings ask the silos for no scores, or no such layers carry a prefix.
        """
        layers = self.settings.layers
        if not layers.asks_silos:
            raise TaskRefused(
                f"Expected no request for scores: layers.form={layers.form} asks the silos for none"
            )
        self.prepare(params)
        with refusing():
            tunable, start = self.tunable.part(params)
            check_candidates(tunable, candidates)
            account = self.account(planned_rounds)
        if len(candidates) <= layers.keep:
            raise TaskRefused(
                f"Expected more candidates than layers.keep={layers.keep}, got {list(candidates)}"
            )
        extras = {names.CANDIDATES: tuple(candidates)}
        task = SiloTask(params, server_round, planned_rounds, extras, names.ASK_SCORES)
        digest = self.digest(task, account.noise_multiplier)

        def release(features: list[Feature], streams: Streams) -> Tensor:
            return account.scores.release(
                tunable,
                start,
                features,
                candidates,
                sampling_rate=account.scores.rate(account.sampling_rate),
                streams=lambda purpose, step: streams(f"scores-{purpose}", step),
            )

        self._try("layer-scores", lambda streams: release([], streams))
        account.spend_scores(
            server_round, release_key(self.settings, "layer-scores", server_round, digest)
        )
        streams = self.streams(server_round, digest)
        released = self._answered(lambda features: release(features, streams), self.train_features)
        return released, account.sampling_rate

    def evaluate(
        self, params: Mapping[str, Tensor], server_round: int, planned_rounds: int
    ) -> tuple[float, float]:
        """Correct answers and number of the silo's held-out examples.

        With ``evaluation.clients = "private"`` both carry noise and may be negative: adding or removing one
        example changes each by at most 1. Discrete Gaussian noise leaves them whole numbers.

        Raises:
            BudgetExceeded: nothing was done, nothing recorded.
            ValueError: the settings ask for no evaluation by the silos.
        """
        if self.settings.evaluation.clients == "off":
            raise TaskRefused("Expected no evaluation by the silo, evaluation.clients is off")
        self.prepare(params)
        with refusing():
            account = self.account(planned_rounds)
        task = SiloTask(params, server_round, planned_rounds, kind=names.EVALUATE)
        digest = self.digest(task, account.noise_multiplier)
        key = release_key(self.settings, "evaluate", server_round, digest)

        def release(features: list[Feature], streams: Streams) -> tuple[float, float]:
            return account.counts.release(self.tunable, params, features, streams)

        self._try("evaluate", lambda streams: release([], streams))
        account.spend_evaluation(server_round, key)
        streams = self.streams(server_round, digest)
        return self._answered(lambda features: release(features, streams), self.held_out_features)
