"""The teacher on the server (:mod:`fedllm.flatness.teacher`): made before the first round, it pulls after each.

Guarantee: with the teachers ``ema`` and ``public`` unchanged, by post-processing; see there. With one of another package
unchanged as long as it keeps to what it is given. With
``nonprivate`` there is none: the silos send a duplicate's updates as they are, each after its own ledger
has taken a row without a guarantee.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, MessageType
from flwr.serverapp import Grid
from torch import Tensor

from fedllm import messages as names
from fedllm.data.batches import Feature
from fedllm.data.formats.records import DataError
from fedllm.data.public import evaluation_set, load_public
from fedllm.flatness.public_teacher import PublicTraining, TeacherError, public_teacher
from fedllm.flatness.teacher import Teacher, make_distillation, make_teacher
from fedllm.run.folder import RunFolder
from server.aggregation import Contribution, MeanUpdate, check_update
from server.extensions.base import Asking, Extras, RoundExtension, ServerRun, Tensors
from server.global_model import ServerOptimizer
from server.nodes.exchange import Stopped
from server.replies import RunStopped
from server.replies.arrays import spec_of
from server.replies.training import TrainingForm, TrainingReply
from server.robust.means import combine

PREFIX, OPTIMIZER = "teacher.", "optimizer."
"""Name prefixes of the teacher's tensors in a checkpoint's state, and of its optimiser's."""
WEIGHTS, DESCRIPTION = "teacher.safetensors", "teacher.json"
"""Files of the run folder: a teacher trained on public text, and what is told of it."""


class TeacherPull(RoundExtension):
    """Pulls the model towards the teacher at the end of each round.

    Args:
        folder: of the run; it keeps a teacher trained on public text.
    """

    teacher: Teacher

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def before_run(self, grid: Grid) -> None:
        """Make the teacher; see :func:`teacher_of_run`."""
        self.teacher = teacher_of_run(self.folder, self.run)

    def after_move(
        self,
        params: dict[str, Tensor],
        mean: MeanUpdate,
        counted: Sequence[Contribution],
        server_round: int,
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Pull. The metrics: seconds, the distance to the teacher before, the divergence of the answers before."""
        began = time.monotonic()
        tunable, trainable = self.run.tunable.part(params)
        if self.teacher.distillation is not None:
            self.teacher.distillation.tunable = tunable
        pulled = self.teacher.pull(trainable, server_round)
        self.teacher.observe(pulled)
        seconds = time.monotonic() - began
        return {**params, **pulled}, {"teacher_seconds": seconds, **self.teacher.told}

    def keep_layers(self, layers: Sequence[int]) -> None:
        """Cut the teacher; with a choice before the first round it is made afterwards."""
        kept = self.run.settings.adapter_layers
        if hasattr(self, "teacher") and kept != "all":
            self._cut(layers, kept)

    def _cut(self, layers: Sequence[int], kept: Sequence[int]) -> None:
        run = self.run
        self.teacher.keep_layers(layers, kept, run.tunable.part(run.model.params)[0])

    def state(self) -> dict[str, Tensor]:
        return {PREFIX + name: value for name, value in self.teacher.state().items()}

    def load_state(self, state: Tensors, meta: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state`.

        Raises:
            KeyError: a tensor is missing.
        """
        found = {n.removeprefix(PREFIX): v for n, v in state.items() if n.startswith(PREFIX)}
        self.teacher.load_state(found)


class DuplicateTeacher(TeacherPull):
    """``nonprivate``: the silos train the teacher beside the model, without clipping and noise.

    Guarantee: none. The teacher's weights hold raw updates, and the model is pulled towards them.

    The duplicate begins where the model begins, and is moved by an optimiser of its own with the
    server's settings, on what ``server.aggregation`` makes of the silos' updates.
    """

    def before_run(self, grid: Grid) -> None:
        super().before_run(grid)
        # There is no noise to correct for.
        self.server = self.run.settings.server.model_copy(update={"noise_correction": False})
        self.optimizer = ServerOptimizer(self.server, self.teacher.weights)

    def prepare_tasks(self, asking: Asking) -> None:
        if asking.kind == MessageType.TRAIN:
            duplicate = {**self.run.model.params, **self.teacher.weights}
            self._sent = ArrayRecord(duplicate)
            self._like = self.run.tunable.part(duplicate, asking.server_round)[1]

    def task_extras(self, asking: Asking, silo: str) -> Extras:
        train = asking.kind == MessageType.TRAIN
        return Extras(records={names.DUPLICATE: self._sent} if train else {})

    def reply_form(self, form: TrainingForm) -> TrainingForm:
        records = {**form.records, names.DUPLICATE: spec_of(self._like)}
        return replace(form, records=records)

    def read(self, silo: str, reply: TrainingReply) -> TrainingReply:
        most = self.run.settings.server.max_update_norm
        checked = check_update(reply.records[names.DUPLICATE], self._like, most)
        return replace(reply, records={**reply.records, names.DUPLICATE: checked})

    def after_move(
        self,
        params: dict[str, Tensor],
        mean: MeanUpdate,
        counted: Sequence[Contribution],
        server_round: int,
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Move the duplicate by the silos' raw updates, then pull."""
        updates = [Contribution(c.silo, dict(c.records[names.DUPLICATE]), None) for c in counted]
        if updates:
            moved, _ = combine(self.server, updates, self._like)
            self.teacher.weights = self.optimizer.step(
                self.teacher.weights, moved, None, server_round
            )
        return super().after_move(params, mean, counted, server_round)

    def _cut(self, layers: Sequence[int], kept: Sequence[int]) -> None:
        super()._cut(layers, kept)
        self.optimizer.keep_layers(layers, kept)

    def state(self) -> dict[str, Tensor]:
        found = {PREFIX + name: value for name, value in self.teacher.weights.items()}
        moments = self.optimizer.state().items()
        return found | {PREFIX + OPTIMIZER + name: value for name, value in moments}

    def load_state(self, state: Tensors, meta: Mapping[str, Any]) -> None:
        weights = self.teacher.weights
        self.teacher.weights = {name: state[PREFIX + name].clone() for name in weights}
        start = PREFIX + OPTIMIZER
        moments = {n.removeprefix(start): v for n, v in state.items() if n.startswith(start)}
        self.optimizer.load_state(moments)


def teacher_of_run(folder: RunFolder, run: ServerRun) -> Teacher:
    """The teacher that the settings ask for. A ``public`` one is trained here, or read from the run folder.

    Progress is emitted: ``kind`` "teacher", ``step``, ``of``, ``loss``.

    Raises:
        RunStopped: there is no public text as the settings name it, or the teacher in the folder is
            damaged.
        Stopped: the run was asked to stop; what is done of a training is kept.
    """
    settings = run.settings
    tunable, weights = run.tunable.part(run.model.params)
    teacher = settings.teacher
    try:
        distillation = make_distillation(settings, tunable)
        if teacher.kind == "public":
            weights = _trained(folder, run)
    except (DataError, TeacherError) as error:
        raise RunStopped(f"No teacher: {error}") from None
    device = tunable.backbone.device
    return make_teacher(teacher, weights, device=device, distillation=distillation)


def _trained(folder: RunFolder, run: ServerRun) -> dict[str, Tensor]:
    """The weights of the teacher that is trained on public text."""
    settings = run.settings
    tunable, params = run.tunable.part(run.model.params)
    losses: list[float] = []

    def features() -> list[Feature]:
        return tunable.task.features(load_public(settings).dataset.records)

    def tell(step: int, loss: float) -> None:
        losses.append(loss)
        steps = settings.teacher.public_steps
        run.emit({"kind": "teacher", "round": 0, "step": step, "of": steps, "loss": loss})
        if run.stop.is_set():
            raise Stopped

    described = folder.read_json(DESCRIPTION, None)
    if described is not None and not (folder.path / WEIGHTS).is_file():
        raise TeacherError(
            f"Expected the teacher of this run in {folder.path / WEIGHTS}, found no file"
        )
    weights = public_teacher(
        folder.path / WEIGHTS, tunable, params, features, PublicTraining.of(settings), tell
    )
    digest = hashlib.sha256((folder.path / WEIGHTS).read_bytes()).hexdigest()
    if described is None:
        public = load_public(settings)
        judged = tunable.task.features(evaluation_set(settings).records)
        metrics = tunable.evaluate(weights, judged, settings.client.max_tokens) if judged else {}
        folder.write_json(
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
            f"Expected the teacher of this run in {folder.path / WEIGHTS}, got another file (SHA-256 "
            f"{digest[:12]})"
        )
    return weights
