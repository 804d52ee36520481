"""An optional part of a run on the server: hooks that do nothing until a subclass overrides them.

A run has a list of extensions, made by :func:`server.extensions.factory.make_extensions`. Each hook is called on all
of them, in the list's order; a hook that takes and returns a value passes it from one to the next.

Guarantee: a hook sees what the silos sent. With noise by the silos that is released, and whatever a hook makes of it
is post-processing; an extension that adds noise itself states its own guarantee.

A round calls, in this order: ``before_round``, ``taking_part``, ``prepare_tasks``, ``task_extras``, ``deliver``; then
``reply_form``, ``update_like`` and ``read`` for the replies, ``limit`` for their norms, ``require``, ``forget``,
``combine``, ``expand``, ``after_move``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from fedllm.budget.round_draws import RoundDraws
from fedllm.settings.experiment import Settings
from fedllm.training.tunable import Tunable
from server.aggregation import Contribution, MeanUpdate
from server.global_model import GlobalModel
from server.replies import Replies
from server.replies.training import TrainingForm, TrainingReply
from server.robust.update_law import UpdateLaw
from server.spending import SpendingView

Tensors = Mapping[str, Tensor]


class ServerRun(Protocol):
    """The extensions' view of their run; see :class:`server.run_state.RunState`."""

    settings: Settings
    tunable: Tunable
    model: GlobalModel
    nodes: dict[str, int]
    sizes: Mapping[str, int | None]
    draws: RoundDraws
    left: dict[str, str]
    spending: SpendingView
    clip: float
    run_id: str
    finished_rounds: int
    moved_rounds: int
    stop: threading.Event
    emit: Callable[[Mapping[str, Any]], None]
    save: Callable[[], None]

    @property
    def trainable(self) -> dict[str, Tensor]:
        """The global parameters that some round trains."""
        ...

    def arrays(self, params: Tensors | None = None) -> ArrayRecord:
        """Parameters (the global ones) as they travel."""
        ...

    def tasks(
        self,
        kind: str,
        chosen: Sequence[str],
        server_round: int,
        arrays: ArrayRecord | None,
        config: ConfigRecord,
    ) -> list[Message]:
        """One task for each of the silos; without parameters where ``arrays`` is None."""
        ...

    def use_layers(self, settings: Settings, layers: Sequence[int], tunable: Tunable) -> None:
        """Continue with fewer layers."""
        ...


@dataclass(frozen=True)
class Asking:
    """A batch of tasks, one a silo: their kind, their round and the parameters as they travel (None: without)."""

    kind: str
    server_round: int
    arrays: ArrayRecord | None


@dataclass(frozen=True)
class Extras:
    """Records and fields (of ``config``) that go with the task of one silo."""

    records: Mapping[str, ArrayRecord] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)


class RoundExtension:
    """An optional part of a run.

    Attributes:
        run: the run that it is part of, from :meth:`join` on. Its settings, model and view of what was spent are
            those of the moment: an extension reads them there and keeps no copy.
    """

    run: ServerRun

    def join(self, run: ServerRun) -> None:
        """Become part of a run; called once, before any other hook."""
        self.run = run

    # -- before the rounds -----------------------------------------------------------------------

    def before_run(self, grid: Grid) -> None:
        """Prepare, before a checkpoint is restored; may change the run's layers and initial parameters."""

    def after_restore(self, grid: Grid) -> None:
        """Prepare, at the parameters that the next round begins with."""

    # -- tasks -----------------------------------------------------------------------------------

    def before_round(self, grid: Grid) -> None:
        """Act before a round; may change the run's layers."""

    def taking_part(self, silos: Sequence[str], server_round: int) -> Sequence[str]:
        """Return those of a round's silos that are asked to train."""
        return silos

    def prepare_tasks(self, asking: Asking) -> None:
        """Get ready for tasks that are about to be made."""

    def task_extras(self, asking: Asking, silo: str) -> Extras:
        """Return the records and fields to add to the task of one silo."""
        return Extras()

    def deliver(self, grid: Grid, silos: Sequence[str], server_round: int) -> int:
        """Send these silos what they need before their tasks of training; return the bytes sent."""
        return 0

    # -- replies to tasks of training ------------------------------------------------------------

    def reply_form(self, form: TrainingForm) -> TrainingForm:
        """Return the required form of a reply."""
        return form

    def update_like(self, like: Tensors) -> Tensors:
        """Return tensors of the shapes of an update that :meth:`read` returns."""
        return like

    def read(self, silo: str, reply: TrainingReply) -> TrainingReply:
        """Return a reply decoded and checked; change nothing else, since it may still be refused.

        Raises:
            ReplyRefused: it is not usable.
        """
        return reply

    def limit(self, law: UpdateLaw) -> UpdateLaw | None:
        """Return the law that bounds the norms of the round's updates; None where single updates are not seen."""
        return law

    def require(self, found: Replies[Contribution]) -> None:
        """Refuse to go on with these replies of a round.

        Raises:
            RunStopped: the round cannot be finished with them.
        """

    def forget(self, silos: Sequence[str]) -> None:
        """Note that these silos lack what :meth:`deliver` sent them."""

    # -- the model -------------------------------------------------------------------------------

    def combine(
        self, server_round: int, accepted: Sequence[Contribution], like: Tensors
    ) -> MeanUpdate | None:
        """Return the mean of the accepted updates; None leaves it to ``server.aggregation``.

        The first extension that returns one decides. It may add silos to ``run.left``.

        Args:
            like: tensors of the shapes of the updates.
        """
        return None

    def expand(self, mean: MeanUpdate) -> MeanUpdate:
        """Return the mean as an update of the model, where the silos sent something else."""
        return mean

    def after_move(
        self,
        params: dict[str, Tensor],
        mean: MeanUpdate,
        counted: Sequence[Contribution],
        server_round: int,
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the parameters that the round ends with, and numbers for the round's record.

        Args:
            params: the parameters after the optimiser's step; not to be changed in place.
            mean: what the optimiser was given.
            counted: the updates that are in it.
        """
        return params, {}

    def keep_layers(self, layers: Sequence[int]) -> None:
        """Drop the rows of all layers but ``run.settings.prefix.layers``; ``layers`` had a prefix so far."""

    # -- checkpoints -----------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Return tensors for a checkpoint, under names of the extension's own."""
        return {}

    def meta(self) -> dict[str, Any]:
        """Return JSON values for a checkpoint, under names of the extension's own."""
        return {}

    def fit_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a checkpoint's whole state in the shapes of the run as it is now."""
        return state

    def load_state(self, state: Tensors, meta: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` and :meth:`meta` returned, from a checkpoint's whole state and meta."""
