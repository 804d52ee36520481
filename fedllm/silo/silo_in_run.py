"""A silo in one run: its data, account and randomness, and what every release does before and after it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from fedllm.budget.account import SiloAccount
from fedllm.budget.local_policy import LocalPolicy
from fedllm.budget.release_id import (
    features_digest,
    params_digest,
    release_key,
    settings_digest,
)
from fedllm.budget.release_inputs import ReleaseInputs, machine, model_inputs
from fedllm.data.batches import Feature
from fedllm.data.repeated_records import repeats
from fedllm.data.silos import Silo
from fedllm.files.printable_error import printable_error
from fedllm.files.private import note
from fedllm.settings.experiment import Settings
from fedllm.silo.answered import answered, try_without_data
from fedllm.silo.extensions.base import Make
from fedllm.silo.extensions.factory import make_silo_extensions
from fedllm.silo.identity import Identity
from fedllm.silo.opened import OpenedSilo, open_silo_data
from fedllm.silo.server_tensors import check_tensors
from fedllm.silo.task import SiloTask
from fedllm.task_errors import NotTakingPart, refusing
from fedllm.training.batch.independence import require_independence
from fedllm.training.batch.rehearsal import rehearse
from fedllm.training.steps import LocalResult, Streams
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.ledger.ledger import Ledger
from privacy.randomness import generator

log = logging.getLogger("fedllm.silo")
Released = TypeVar("Released")


class SiloInRun:
    """A silo, with what it keeps between the tasks of a run.

    Args:
        settings: the experiment's settings.
        silo: the silo's data.
        run: the run's id.
        ledger: the silo's ledger, open, or its path.
        log: file for what only the silo itself may see (counts of clipped gradients, ...), or None.
        own: what the silo itself allows, see :mod:`fedllm.budget.local_policy`.
        identity: the silo's own key and those of its peers; None in a simulation.
    """

    def __init__(
        self,
        settings: Settings,
        silo: Silo,
        *,
        run: str,
        ledger: Ledger | Path,
        log: Path | None = None,
        own: LocalPolicy | None = None,
        identity: Identity | None = None,
    ) -> None:
        self.own = own
        self.identity = identity
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
        self._tried: dict[tuple[str, int], str] = {}
        self.extensions = make_silo_extensions(self.settings)
        for extension in self.extensions:
            extension.join(self)
        self._fixed: dict[str, Any] | None = None

    def open(self) -> OpenedSilo:
        """The silo's usable records, checked and tokenised once; how many repeat goes into the silo's log.

        Raises:
            NotTakingPart: they cannot be used; why is in the silo's own log.
        """
        if self._opened is None:
            try:
                self._opened = open_silo_data(
                    self.silo, self.settings.data.bad_rows, self.tunable.task
                )
            except Exception as error:
                self.note_error("the data cannot be used", error)
                raise NotTakingPart from error
            task, left_out = self.settings.task, self._opened.left_out
            if left_out:
                self._append_to_log({"kind": "left-out-records", "of": left_out})
            self._append_to_log(repeats(self._opened.silo, task.columns.names))
            self._note_reuse(self._opened)
        return self._opened

    def _note_reuse(self, opened: OpenedSilo) -> None:
        """Write an estimate of the room for kept states into the silo's own log."""
        task = self.tunable.task
        if task.trunk is not None:
            features = [*opened.train, *opened.held_out]
            size = task.trunk.estimated_bytes(features, task.backbone.hidden_size)
            limit = task.trunk.store.limit
            self._append_to_log({"kind": "reuse", "estimated_bytes": size, "limit_bytes": limit})

    def prepare(self, task: SiloTask) -> SiloAccount:
        """Run the checks of a task that spend nothing, and return the account.

        Raises:
            TaskRefused: the extras are not those of the settings; no data were opened.
            NotTakingPart: the data cannot be used.
            ModelError: the model cannot compute an example, or couples examples.
            LimitRefused: the parameters do not fit the model or its bounds; no data were opened.
            BudgetExceeded: other runs on the ledger have left no room for this one.
        """
        self.check(task.params)
        with refusing():
            self.check_extras(task)
        self.open()
        if not self._rehearsed:
            gradients = self.settings.model.access != "black-box"
            rehearse(self.tunable, task.params, gradients=gradients)
            self._rehearsed = True
        with refusing():
            account = self.account(task.planned_rounds)
            for extension in self.extensions:
                extension.admit(task, account)
        return account

    def check_extras(self, task: SiloTask) -> None:
        """Refuse extras that are not those of the settings, which alone decide what leaves; reads no data.

        Raises:
            ValueError: one is missing, or was not asked for, or an extension refuses it.
        """
        expected = {name for each in self.extensions for name in each.brings(task.kind).names}
        if set(task.extras) != expected:
            raise ValueError(
                f"Expected {', '.join(sorted(expected)) or 'nothing'} beside the parameters of a {task.kind} task "
                f"for these settings, got {', '.join(sorted(task.extras)) or 'nothing'}"
            )
        for extension in self.extensions:
            extension.check(task)

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
        """Return the initial parameters: the names and shapes of all parameters that a server may send."""
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
                beside=self.extensions,
            )
        return self._account

    def release(
        self,
        task: SiloTask,
        purpose: str,
        makes: Sequence[Make],
        record: Callable[[str], object],
        features: list[Feature],
    ) -> list[Any]:
        """Try each release without data, record the row, then make them; the only way from the data to a reply.

        Args:
            task: which asks for them, after :meth:`prepare`.
            purpose: of the row.
            makes: the releases; all are in one row.
            record: writes the row under this key, or does nothing where it is the server that adds the noise, and
                records the event before it does.
            features: the examples.

        Raises:
            TaskFailed, TaskRefused: a release cannot be made, whatever the data; nothing was recorded.
            BudgetExceeded: nothing was recorded.
        """
        for index, make in enumerate(makes):
            self._try(task, index, make)
        digest = self.digest(task, self.account(task.planned_rounds).noise_multiplier)
        record(release_key(self.settings, purpose, task.round, digest))
        streams = self.streams(task.round, digest)

        def made(make: Make) -> Any:
            return self._answered(lambda chosen: make(chosen, streams), features)

        return [made(make) for make in makes]

    def _answered(
        self, release: Callable[[list[Feature]], Released], features: list[Feature]
    ) -> Released:
        """See :func:`fedllm.silo.answered.answered`."""
        private = self.settings.privacy.mode == "dp"
        return answered(release, features, private=private, note=self.note_error)

    def _try(self, task: SiloTask, index: int, make: Make) -> None:
        """Make a release of no data before the row (:mod:`fedllm.silo.answered`).

        With fixed shapes, where this takes as long as the release itself, one with the same plain extras as the last
        of its kind is not tried again.
        """
        plain = {name: v for name, v in task.extras.items() if not isinstance(v, Mapping)}
        what = repr(sorted(plain.items()))
        if self.settings.client.max_batch is None or self._tried.get((task.kind, index)) != what:
            try_without_data(lambda streams: make([], streams), self.note_error)
            self._tried[task.kind, index] = what

    def streams(self, server_round: int, digest: str) -> Streams:
        """Sources of randomness of one round: secret, each with a key of its own; with seeded
        randomness, a function of all that the released value depends on, so that the same noise is
        never added to two different values."""
        if self.settings.privacy.randomness == "os":
            return lambda purpose, step: generator(None)
        fixed = (self.silo.name, server_round, digest)
        return lambda purpose, step: generator(self.settings.seed, *fixed, purpose, step)

    def digest(self, task: SiloTask, noise_multiplier: float) -> str:
        """Return the name of a release of this silo for a task.

        Seeded: the fingerprint of all its inputs, since other values must neither meet the same noise, at
        whatever scale, nor pass for the same release. Else the digest of the parameters alone: no hash of
        private data leaves the silo.
        """
        if self.settings.privacy.randomness == "os":
            return params_digest(task.params)
        return self.inputs(task, noise_multiplier).fingerprint()

    def inputs(self, task: SiloTask, noise_multiplier: float) -> ReleaseInputs:
        """Return the inputs of a release of this silo for a task; private, a digest of the data is among them."""
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
            task=task.fingerprint(),
            silo=self.silo.name,
            machine=machine(self.tunable.backbone),
            planned_rounds=0 if account is None else account.rounds,
            sampling_rate=0.0 if account is None else account.sampling_rate,
            noise_multiplier=float(noise_multiplier),
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
