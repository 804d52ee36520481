"""The teacher on the server (:mod:`fedllm.flatness.teacher`): made before the first round, pulls after each.

Guarantee: with the teachers ``ema`` and ``public`` unchanged, by post-processing; see there. With
``nonprivate`` there is none: the silos send a duplicate's updates as they are, each after its own ledger
has taken a row without a guarantee.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.data.formats.records import DataError
from fedllm.data.public import load_public
from fedllm.data.silos import evaluation_set
from fedllm.flatness.public_teacher import TeacherError, public_teacher
from fedllm.flatness.teacher import EmaTeacher, Teacher, cut, make_distillation
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings
from fedllm.training.tunable import Tunable
from server.aggregation import Contribution
from server.nodes.exchange import Stopped
from server.optimizers import ServerOptimizer
from server.replies import RunStopped
from server.robust.means import combine

PREFIX, OPTIMIZER = "teacher.", "optimizer."
"""Of the teacher's tensors in a checkpoint's state, and of its optimiser's among them."""
WEIGHTS, DESCRIPTION = "teacher.safetensors", "teacher.json"
"""Files of the run folder: a teacher trained on public text, and what is told of it."""
Emit = Callable[[Mapping[str, Any]], None]


class TeacherLink:
    """Joins a teacher to the rounds of a run."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def pull(
        self, params: Mapping[str, Tensor], server_round: int
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The model at the end of the round, and what the round's record tells of it: seconds, the
        distance to the teacher before, the divergence of the answers before."""
        began = time.monotonic()
        pulled = self.teacher.pull(params, server_round)
        self.teacher.observe(pulled)
        seconds = time.monotonic() - began
        return pulled, {"teacher_seconds": seconds, **self.teacher.told}

    def arrays(self) -> ArrayRecord | None:
        """What the silos get beside the model in a task of training; None for nothing."""
        return None

    @property
    def duplicate_like(self) -> Mapping[str, Tensor] | None:
        """Tensors of the shapes of what a silo's reply brings beside its update; None for nothing."""
        return None

    def move(self, accepted: Sequence[Contribution], server_round: int) -> None:
        """Let the teacher learn from what the silos sent beside their updates."""

    def keep_layers(self, positions: Sequence[int], tunable: Tunable | None = None) -> None:
        """See :meth:`fedllm.flatness.teacher.Teacher.keep_layers`."""
        self.teacher.keep_layers(positions, tunable)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint's state."""
        return {PREFIX + name: value for name, value in self.teacher.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state`, from a checkpoint's whole state.

        Raises:
            KeyError: a tensor is missing.
        """
        found = {n.removeprefix(PREFIX): v for n, v in state.items() if n.startswith(PREFIX)}
        self.teacher.load_state(found)


class DuplicateLink(TeacherLink):
    """``nonprivate``: the silos train the teacher beside the model, without clipping and noise.

    Guarantee: none. The teacher's weights hold raw updates, and the model is pulled towards them.

    The duplicate begins where the model begins, and is moved by an optimiser of its own with the
    server's settings, on what ``server.aggregation`` makes of the silos' updates.
    """

    def __init__(self, teacher: Teacher, settings: Settings) -> None:
        super().__init__(teacher)
        # There is no noise to correct for.
        self.server = settings.server.model_copy(update={"noise_correction": False})
        self.optimizer = ServerOptimizer(self.server, teacher.weights)

    def arrays(self) -> ArrayRecord:
        return ArrayRecord(dict(self.teacher.weights))

    @property
    def duplicate_like(self) -> Mapping[str, Tensor]:
        return self.teacher.weights

    def move(self, accepted: Sequence[Contribution], server_round: int) -> None:
        updates = [
            Contribution(c.silo, c.duplicate, None) for c in accepted if c.duplicate is not None
        ]
        if updates:
            mean, _ = combine(self.server, updates, self.teacher.weights)
            self.teacher.weights = self.optimizer.step(
                self.teacher.weights, mean, None, server_round
            )

    def keep_layers(self, positions: Sequence[int], tunable: Tunable | None = None) -> None:
        super().keep_layers(positions, tunable)
        self.optimizer.first = cut(self.optimizer.first, positions)
        self.optimizer.second = cut(self.optimizer.second, positions)

    def state(self) -> dict[str, Tensor]:
        found = {PREFIX + name: value for name, value in self.teacher.weights.items()}
        moments = self.optimizer.state().items()
        return found | {PREFIX + OPTIMIZER + name: value for name, value in moments}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        weights = self.teacher.weights
        self.teacher.weights = {name: state[PREFIX + name].clone() for name in weights}
        start = PREFIX + OPTIMIZER
        moments = {n.removeprefix(start): v for n, v in state.items() if n.startswith(start)}
        self.optimizer.load_state(moments)


def make_teacher(
    run: RunFolder,
    settings: Settings,
    params: Mapping[str, Tensor],
    tunable: Tunable,
    stop: threading.Event,
    emit: Emit,
) -> TeacherLink | None:
    """The teacher that the settings ask for; None for none. A ``public`` one is trained here, or read
    from the run folder.

    Args:
        params: the parameters before training.
        stop: set by another thread to interrupt a training on public text; what is done is kept.
        emit: takes its progress: ``kind`` "teacher", ``step``, ``of``, ``loss``.

    Raises:
        RunStopped: there is no public text as the settings name it, or the teacher in the folder is
            damaged.
        Stopped: ``stop`` was set.
    """
    teacher, device = settings.teacher, tunable.backbone.device
    if teacher.kind == "none":
        return None
    try:
        distillation = make_distillation(settings, tunable)
        weights = params
        if teacher.kind == "public":
            weights = _trained(run, settings, params, tunable, stop, emit)
    except (DataError, TeacherError) as error:
        raise RunStopped(f"No teacher: {error}") from None
    kind = EmaTeacher if teacher.kind == "ema" else Teacher
    made = kind(teacher, weights, device=device, distillation=distillation)
    return DuplicateLink(made, settings) if teacher.kind == "nonprivate" else TeacherLink(made)


def _trained(
    run: RunFolder,
    settings: Settings,
    params: Mapping[str, Tensor],
    tunable: Tunable,
    stop: threading.Event,
    emit: Emit,
) -> dict[str, Tensor]:
    """The weights of the teacher that is trained on public text."""
    losses: list[float] = []

    def features() -> list[Feature]:
        return tunable.task.features(load_public(settings).dataset.records)

    def tell(step: int, loss: float) -> None:
        losses.append(loss)
        steps = settings.teacher.public_steps
        emit({"kind": "teacher", "round": 0, "step": step, "of": steps, "loss": loss})
        if stop.is_set():
            raise Stopped

    described = run.read_json(DESCRIPTION, None)
    if described is not None and not (run.path / WEIGHTS).is_file():
        raise TeacherError(
            f"Expected the teacher of this run in {run.path / WEIGHTS}, found no file"
        )
    weights = public_teacher(run.path / WEIGHTS, tunable, params, features, settings, tell)
    digest = hashlib.sha256((run.path / WEIGHTS).read_bytes()).hexdigest()
    if described is None:
        public = load_public(settings)
        judged = tunable.task.features(evaluation_set(settings).records)
        metrics = tunable.evaluate(weights, judged, settings.client.max_tokens)
        run.write_json(
            DESCRIPTION,
            {
                "sha256": digest,
                "steps": settings.teacher.public_steps,
                "examples": len(public.dataset),
                "left_out_in_evaluation": public.in_evaluation,
                "in_silos": public.in_silos,
                "evaluation": metrics,
            },
        )
    elif described.get("sha256") != digest:
        raise TeacherError(
            f"Expected the teacher of this run in {run.path / WEIGHTS}, got another file (SHA-256 "
            f"{digest[:12]})"
        )
    return weights
