"""An optional part of a run at a silo: hooks that do nothing until a subclass overrides them.

A silo has a list of extensions, made by :func:`fedllm.silo.extensions.factory.make_silo_extensions` from its settings.
Most have a half on the server (``server/extensions``), which sends the extras that the silo's half reads.

A task of training calls, in this order: ``brings`` and ``check`` before any data are read; ``mechanism`` and
``prepare`` for the round's work; ``releases``; then, after the release was tried without data, the row was written and
the release was made, ``seal`` and ``reply``. Any other task is a request, which one extension answers (``requests``), or
one without parameters (``exchanges``) or a delivery (``deliveries``), which read no data. Before a task that may release
something, ``admit`` sees the account.

Guarantee: the settings of the silo decide which extensions there are, and so what is released. What a hook computes of
data leaves only through :meth:`SiloRun.release`, which writes the row first. Its event is among those that the account
plans and records by the settings (``fedllm/budget``), or is one of ``round_events`` and ``request_events``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from fedllm.budget.account import SiloAccount
from fedllm.budget.limits import PlannedBeside
from fedllm.data.batches import Feature
from fedllm.data.silos import Silo
from fedllm.settings.experiment import Settings
from fedllm.silo.identity import Identity
from fedllm.silo.task import SiloTask
from fedllm.silo.task_form import ArrayForm, TaskForm
from fedllm.training.mechanism import Mechanism
from fedllm.training.steps import LocalResult, LocalWork, Streams
from fedllm.training.tunable import Tunable
from privacy.ledger.ledger import Ledger

Tensors = Mapping[str, Tensor]
Make = Callable[[list[Feature], Streams], Any]
"""``make(features, streams)`` makes a release of these examples. It must also make one of no example: this is how it is
tried before the row, and what leaves where the examples raise."""


@dataclass(frozen=True)
class Answer:
    """An extension's part of a reply: every value is released or public.

    Attributes:
        tensors: by record.
        numbers: metrics.
        texts: fields of the reply's ``info``.
    """

    tensors: Mapping[str, Tensors] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    def __or__(self, other: Answer) -> Answer:
        return Answer(
            {**self.tensors, **other.tensors},
            {**self.numbers, **other.numbers},
            {**self.texts, **other.texts},
        )


Exchange = Callable[[SiloTask], Answer]
"""``exchange(task)`` answers a task without parameters, which reads no data and releases nothing of them."""
Respond = Callable[[SiloTask, SiloAccount], Answer]
"""``respond(task, account)`` answers a request; the task is checked, the data are open, nothing is recorded."""


class SiloRun(Protocol):
    """A silo in a run, as its extensions see it; see :class:`fedllm.silo.silo_in_run.SiloInRun`."""

    settings: Settings
    silo: Silo
    run: str
    ledger: Ledger
    tunable: Tunable
    identity: Identity | None

    @property
    def train_features(self) -> list[Feature]:
        """The silo's training examples."""
        ...

    @property
    def held_out_features(self) -> list[Feature]:
        """The silo's own evaluation examples."""
        ...

    def check(self, tensors: Tensors, what: str = "parameters") -> None:
        """Refuse tensors of the server that do not fit the model or its bounds."""
        ...

    def release(
        self,
        task: SiloTask,
        purpose: str,
        makes: Sequence[Make],
        record: Callable[[str], object],
        features: list[Feature],
    ) -> list[Any]:
        """Try each release without data, record the row, then make them."""
        ...


class Delivery(Protocol):
    """An object that a server sends ahead of the tasks that need it, for the silo to keep.

    Attributes:
        record: of its arrays.
        most: arrays at most.
    """

    record: str
    most: int

    def check(
        self,
        fields: Mapping[str, Any],
        forms: Mapping[str, ArrayForm],
        dimension: int,
        limits: Mapping[str, Any] | None,
    ) -> None:
        """Refuse one that the settings cannot have.

        Args:
            fields: what came along.
            forms: of its arrays, none of which has been made.
            dimension: number of trained numbers.
            limits: those of the silo config, by name; None in a simulation.

        Raises:
            LimitRefused: the silo's own limits do not allow it.
            ValueError: it is not one of these settings.
        """
        ...

    def keep(self, fields: Mapping[str, Any], tensors: Tensors) -> None:
        """Keep it.

        Raises:
            ValueError: it is not what it is said to be; nothing was kept.
        """
        ...


class SiloExtension(PlannedBeside):
    """An optional part of a run at one silo.

    Attributes:
        run: the silo in the run, from :meth:`join` on. ``brings``, ``requests`` and ``deliveries`` are also called
            before, to read a task.
    """

    run: SiloRun

    def join(self, run: SiloRun) -> None:
        """Become part of a silo's run; called once, before any hook that computes."""
        self.run = run

    # -- tasks -----------------------------------------------------------------------------------

    def brings(self, kind: str) -> TaskForm:
        """Return the extras of a task of this kind for this extension; a task with any other extra is refused."""
        return TaskForm()

    def check(self, task: SiloTask) -> None:
        """Refuse a task whose extras do not fit the settings or the model; read no data.

        Raises:
            ValueError: they do not; the message is a function of public values.
        """

    def admit(self, task: SiloTask, account: SiloAccount) -> None:
        """Fit the silo's account to the run before it plans or records anything; read no data.

        Raises:
            ValueError: the task may not release anything; the message is a function of public values.
        """

    # -- a round of training ---------------------------------------------------------------------

    def mechanism(self, mechanism: Mechanism, task: SiloTask) -> Mechanism:
        """Return the mechanism of this round."""
        return mechanism

    def prepare(self, work: LocalWork, task: SiloTask) -> LocalWork:
        """Return the work of this round; its examples and streams are filled in later."""
        return work

    def releases(self, task: SiloTask, account: SiloAccount) -> Mapping[str, Make]:
        """Return further releases, by record of the reply: each makes tensors by name.

        Its streams are those of the round: a purpose must be one that nothing else in the round uses.
        """
        return {}

    def seal(self, task: SiloTask, result: LocalResult) -> LocalResult:
        """Return the result as it leaves: the same release, hidden from who must not see it alone.

        Raises:
            ValueError: it cannot be hidden, whatever it is; the message is a function of public values.
        """
        return result

    def reply(self, task: SiloTask, result: LocalResult) -> Answer:
        """Return additions to the reply: public, or part of the mechanism's release."""
        return Answer()

    # -- other tasks -----------------------------------------------------------------------------

    def requests(self) -> Mapping[str, Respond]:
        """Return the handler of each other kind of task: ``evaluate``, or ``query.`` and a name."""
        return {}

    def exchanges(self) -> Mapping[str, Exchange]:
        """Return the handler of each kind of task without parameters (``query.`` and a name)."""
        return {}

    def deliveries(self) -> Mapping[str, Delivery]:
        """Return the deliveries to keep, by kind of message (:data:`fedllm.messages.SEND` and a name)."""
        return {}
