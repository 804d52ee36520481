"""One silo's work in one run: its data and account, and the answers to the server's tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from fedllm.budget.account import SiloAccount
from fedllm.budget.limits import score_rate
from fedllm.budget.local_policy import OwnBounds
from fedllm.budget.release_id import features_digest, params_digest, release_key, settings_digest
from fedllm.budget.release_inputs import ReleaseInputs, digest_or_empty, machine, model_inputs
from fedllm.codec.store import codec_from_store
from fedllm.data.batches import Feature
from fedllm.data.repeated_records import repeats
from fedllm.data.silos import Silo
from fedllm.files.printable_error import printable_error
from fedllm.files.private import note
from fedllm.flatness.duplicate import duplicate_update
from fedllm.flatness.layer_release import release_scores
from fedllm.flatness.layer_scores import check_candidates
from fedllm.settings.experiment import Settings
from fedllm.silo.answered import answered, try_without_data
from fedllm.silo.evaluation import released_counts
from fedllm.silo.opened import OpenedSilo, open_silo_data
from fedllm.silo.server_tensors import check_tensors
from fedllm.task_errors import NotTakingPart, TaskRefused, refusing
from fedllm.training.adaptive_clip import at_clip
from fedllm.training.batch.independence import require_independence
from fedllm.training.batch.rehearsal import rehearse
from fedllm.training.dp_sgd import train_locally
from fedllm.training.encoding import Encoding
from fedllm.training.forward_only import forward_only
from fedllm.training.statistics import release_statistics
from fedllm.training.steps import LocalResult, Streams
from fedllm.training.tunable import initial_params, shared_tunable
from fedllm.training.zeroth_order import Directions, train_forward_only
from privacy.ledger.ledger import Ledger
from privacy.randomness import generator

log = logging.getLogger("fedllm.silo")
Released = TypeVar("Released")


@dataclass(frozen=True)
class TrainReply:
    """What may leave the silo after a round: every field is released or public."""

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


class SiloWorker:
    """Serves one silo in one run.

    Args:
        settings: the experiment's settings.
        silo: the silo's data.
        run: the run's id.
        ledger: the silo's ledger, open, or its path.
        log: file for what only the silo itself may see (counts of clipped gradients, ...), or None.
        own: what the silo itself allows, see :mod:`fedllm.budget.local_policy`.
    """

    def __init__(
        self,
        settings: Settings,
        silo: Silo,
        *,
        run: str,
        ledger: Ledger | Path,
        log: Path | None = None,
        own: OwnBounds | None = None,
    ) -> None:
        self.own = own
        self.settings = settings.for_silo(silo.name)
        self.silo = silo
        self.run = run
        self.log = log
        self.ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
        self.tunable = shared_tunable(settings)
        self._opened: OpenedSilo | None = None
        self._rehearsed = False
        self._account: SiloAccount | None = None
        self._initial: dict[str, Tensor] | None = None
        self._independent = False
        self._tried = ""
        self._fixed: dict[str, Any] | None = None

    def open(self) -> OpenedSilo:
        """The silo's usable records, checked and tokenised once; how many repeat goes into the silo's log.

        Raises:
            NotTakingPart: they cannot be used; why is in the silo's own log.
        """
        if self._opened is None:
            try:
                self._opened = open_silo_data(self.silo, self.settings, self.tunable.task)
            except Exception as error:
                self.note_error("the data cannot be used", error)
                raise NotTakingPart from error
            task, left_out = self.settings.task, self._opened.left_out
            if left_out:
                self._append_to_log({"kind": "left-out-records", "of": left_out})
            self._append_to_log(repeats(self._opened.silo, (*task.text, task.target)))
        return self._opened

    def prepare(self, params: Mapping[str, Tensor]) -> None:
        """What can fail for all examples alike, before anything is spent; the first time alone.

        Raises:
            NotTakingPart: the data cannot be used.
            ModelError: the model cannot compute an example, or couples examples.
            LimitRefused: the parameters do not fit the model or its bounds; no data were opened.
        """
        self.check(params)
        self.open()
        if not self._rehearsed:
            rehearse(self.tunable, params, self.settings)
            self._rehearsed = True

    @property
    def train_features(self) -> list[Feature]:
        """The silo's training examples."""
        return self.open().train

    @property
    def held_out_features(self) -> list[Feature]:
        """The silo's own evaluation examples."""
        return self.open().held_out

    @property
    def initial(self) -> dict[str, Tensor]:
        """What training starts from: the names and shapes of all parameters that a server may send."""
        if self._initial is None:
            self._initial = initial_params(self.tunable, self.settings)
        return self._initial

    def check(self, tensors: Mapping[str, Tensor], what: str = "parameters") -> None:
        """Refuse tensors of the server that do not fit the model or its bounds, and at the first call a model that
        couples examples; reads no data.

        Raises:
            ModelError: see :func:`fedllm.training.batch.independence.require_independence`.
            LimitRefused: see :func:`fedllm.silo.server_tensors.check_tensors`.
        """
        if not self._independent:
            if not self.settings.endpoint.active and self.settings.privacy.mode == "dp":
                require_independence(self.tunable, self.initial)
            self._independent = True
        limit = self.settings.client.parameter_norm
        if self.own is not None:
            limit = min(limit, self.own.parameter_norm)
        check_tensors(tensors, self.initial, limit, what)

    def account(self, planned_rounds: int) -> SiloAccount:
        """The silo's account; made (and its noise calibrated) at the first call.

        The data are opened before: whoever has an account can do what it spends for.
        """
        if self._account is None:
            self._account = SiloAccount(
                self.settings,
                run=self.run,
                party=self.silo.name,
                examples=len(self.train_features),
                rounds=planned_rounds,
                ledger=self.ledger,
                own=self.own,
            )
        return self._account

    def train(
        self,
        params: Mapping[str, Tensor],
        server_round: int,
        planned_rounds: int,
        codec_version: str = "",
        duplicate: Mapping[str, Tensor] | None = None,
        directions: str = "",
        clip: float | None = None,
    ) -> TrainReply:
        """One round: record the events durably, then train, then answer.

        Args:
            codec_version: of the codec to encode the update by; empty for none.
            duplicate: parameters of the teacher that is trained without privacy
                (``teacher.kind = "nonprivate"``), whose events the recorded row then holds.
            directions: ``model.access = "black-box"``: the round's public seed of random directions.
            clip: adaptive clipping: the norm of this round; else None.

        Raises:
            BudgetExceeded: nothing was done, nothing recorded.
            LimitRefused: tensors that do not fit the model or its bounds; nothing was done, nothing recorded.
            CodecMissing: the codec is not here; nothing was done, nothing recorded.
            ValueError: the settings ask for a codec, a non-private teacher or a seed of directions and the
                task brings none, or the reverse; a clipping norm that is missing, out of range, or not asked for.
        """
        if duplicate is not None:
            self.check(duplicate, "a duplicate")
        self.prepare(params)
        with refusing():
            self._check_duplicate(duplicate)
            settings = at_clip(self.settings, clip)
            along = self.directions(params, directions)
            encoding = self.encoding(params, codec_version)
            account = self.account(planned_rounds)
        account.clip = settings.privacy.clip
        multiplier = account.noise_multiplier
        digest = self.digest(
            params,
            multiplier,
            purpose="train",
            server_round=server_round,
            codec="" if encoding is None else encoding.version,
            duplicate=digest_or_empty(duplicate),
            directions=directions,
            clip=clip,
        )
        key = release_key(self.settings, "train", server_round, digest)
        by_client = self.settings.privacy.noise_by == "client"
        options: dict[str, Any] = {
            "settings": settings,
            "sampling_rate": account.sampling_rate,
            "noise_multiplier": multiplier if by_client else 0.0,
            "streams": self.streams(server_round, digest),
        }

        def duplicates(features: list[Feature], streams: Streams) -> dict[str, Tensor]:
            rate = account.sampling_rate
            return duplicate_update(
                *(self.tunable, duplicate or {}, features, self.settings),
                sampling_rate=rate,
                streams=streams,
            )

        if duplicate is not None:
            self._try("a duplicate", lambda streams: duplicates([], streams))
        self._try(
            f"train {codec_version} {clip}",
            lambda streams: self._trained(
                *(params, [], along, encoding, server_round),
                options | {"streams": streams},
            ),
        )
        if by_client or not account.private:
            account.spend_training(server_round, key)
        # Otherwise the server adds the noise, and records the event before it does.
        result = self._answered(
            lambda features: self._trained(
                params, features, along, encoding, server_round, options
            ),
            self.train_features,
        )
        self._write_log(server_round, result)
        raw = None
        if duplicate is not None:
            raw = self._answered(
                lambda features: duplicates(features, options["streams"]), self.train_features
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

    def _answered(
        self, release: Callable[[list[Feature]], Released], features: list[Feature]
    ) -> Released:
        """See :func:`fedllm.silo.answered.answered`."""
        private = self.settings.privacy.mode == "dp"
        return answered(release, features, private=private, note=self.note_error)

    def _try(self, what: str, release: Callable[[Streams], object]) -> None:
        """Make a release of no data before the row (:mod:`fedllm.silo.answered`).

        Args:
            what: names the release; with fixed shapes, where this takes as long as the release itself, the same
                one is tried once.
        """
        if self.settings.client.max_batch is None or self._tried != what:
            try_without_data(release, self.note_error)
            self._tried = what

    def _trained(
        self,
        params: Mapping[str, Tensor],
        features: list[Feature],
        along: Directions | None,
        encoding: Encoding | None,
        server_round: int,
        options: Mapping[str, Any],
    ) -> LocalResult:
        """The local steps, by gradients or along random directions."""
        if along is not None:
            model = forward_only(self.tunable)
            return train_forward_only(model, params, features, directions=along, **options)
        return train_locally(
            self.tunable,
            params,
            features,
            encoding=encoding,
            server_round=server_round,
            **options,
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
        return Directions(self.settings, params, seed) if seed else None

    def encoding(self, params: Mapping[str, Tensor], version: str) -> Encoding | None:
        """How this round's update is encoded."""
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
        digest = self.digest(params, account.noise_multiplier, purpose="statistics")
        rate = account.sampling_rate

        def release(features: list[Feature], streams: Streams) -> Tensor:
            return release_statistics(
                self.tunable,
                params,
                features,
                self.settings,
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
            check_candidates(self.tunable, candidates)
            account = self.account(planned_rounds)
        if len(candidates) <= layers.keep:
            raise TaskRefused(
                f"Expected more candidates than layers.keep={layers.keep}, got {list(candidates)}"
            )
        digest = self.digest(
            params,
            account.noise_multiplier,
            purpose="layer-scores",
            server_round=server_round,
            candidates=tuple(candidates),
        )

        def release(features: list[Feature], streams: Streams) -> Tensor:
            return release_scores(
                self.tunable,
                params,
                features,
                candidates,
                self.settings,
                sampling_rate=score_rate(self.settings, account.sampling_rate),
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
        digest = self.digest(
            params, account.noise_multiplier, purpose="evaluate", server_round=server_round
        )
        key = release_key(self.settings, "evaluate", server_round, digest)

        def release(features: list[Feature], streams: Streams) -> tuple[float, float]:
            return released_counts(self.tunable, params, features, self.settings, streams)

        self._try("evaluate", lambda streams: release([], streams))
        account.spend_evaluation(server_round, key)
        streams = self.streams(server_round, digest)
        return self._answered(lambda features: release(features, streams), self.held_out_features)

    def streams(self, server_round: int, digest: str) -> Streams:
        """Sources of randomness of one round: secret, each with a key of its own; with seeded
        randomness, a function of all that the released value depends on, so that the same noise is
        never added to two different values."""
        if self.settings.privacy.randomness == "os":
            return lambda purpose, step: generator(None)
        fixed = (self.silo.name, server_round, digest)
        return lambda purpose, step: generator(self.settings.seed, *fixed, purpose, step)

    def digest(
        self,
        params: Mapping[str, Tensor],
        noise_multiplier: float,
        *,
        purpose: str,
        server_round: int = 0,
        **task: Any,
    ) -> str:
        """Return what names a release of this silo at ``params``.

        Seeded: the fingerprint of all its inputs, since other values must neither meet the same noise, at
        whatever scale, nor pass for the same release. Else the digest of the parameters alone: no hash of
        private data leaves the silo.

        Args:
            task: other fields of :class:`ReleaseInputs`.
        """
        if self.settings.privacy.randomness == "os":
            return params_digest(params)
        return self.inputs(
            params, noise_multiplier, purpose=purpose, server_round=server_round, **task
        ).fingerprint()

    def inputs(
        self, params: Mapping[str, Tensor], noise_multiplier: float, **task: Any
    ) -> ReleaseInputs:
        """Return the inputs of a release of this silo at ``params``; private, a digest of the data is among them."""
        if self._fixed is None:
            data = features_digest([*self.train_features, *self.held_out_features])
            self._fixed = {
                "examples": data,
                "settings": settings_digest(self.settings),
                **model_inputs(self.tunable.backbone),
            }
        account = self._account
        return ReleaseInputs(
            **self._fixed,
            silo=self.silo.name,
            machine=machine(),
            planned_rounds=0 if account is None else account.rounds,
            sampling_rate=0.0 if account is None else account.sampling_rate,
            noise_multiplier=float(noise_multiplier),
            params=params_digest(params),
            **task,
        )

    def _write_log(self, server_round: int, result: LocalResult) -> None:
        self._append_to_log(
            {
                "round": server_round,
                "examples": result.examples,
                "clipped": result.clipped,
                "nonfinite": result.nonfinite,
                "failed": result.failed,
                "median_norm": None if np.isnan(result.median_norm) else result.median_norm,
            }
        )

    def note_error(self, what: str, error: Exception) -> None:
        """Keep an error at the silo: in the process's log and in the silo's own."""
        log.error("%s\n%s", what, printable_error(error))
        self._append_to_log({"what": what, "error": f"{type(error).__name__}: {error}"})

    def _append_to_log(self, record: Mapping[str, Any]) -> None:
        if self.log is not None:
            note(self.log, record)
