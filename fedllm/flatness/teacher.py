"""Across models (Privacy-Flat, arXiv 2403.04124): a teacher pulls the private model on the server.

After each aggregation the server takes gradient steps on

    lambda / 2 |w - w'|^2  +  distillation * mean KL(teacher's answers || model's answers)

with the teacher's weights w' fixed. Teachers differ in where w' comes from:

``ema``: an exponential moving average of the models that this run has released already. Guarantee:
unchanged. Proof: w' and the steps are a function of the released models, of public text and of the settings
alone, and no function of what a differentially private mechanism released loses its guarantee
(post-processing; Dwork and Roth 2014, Proposition 2.1); what the silos then compute at the new model is the
next mechanism of an adaptive composition, whose events are in the ledger as without a teacher.
It differs from ``server.averaging``: that average is evaluated and exported and never touches the training;
this one moves the model itself, so that the silos' next gradients are taken at another point. Both can be on.

``public``: trained by the server on public text (:mod:`fedllm.flatness.public_teacher`). Guarantee:
unchanged, by the same proof: w' is a function of public values.

``nonprivate``: a duplicate that the silos train without clipping and noise. Guarantee: none, formally, as
the paper's authors say: w' depends on the silos' data in an unbounded way, and so does the pulled model.
Each round that trains it adds a row without a guarantee to the ledger.

A teacher of another package (:func:`register_teacher`): a subclass of :class:`Teacher`, which is given the released
models, the settings and public text alone. Guarantee: unchanged, by the proof of ``ema``, as long as it reads nothing
else; that is its author's word, and the report says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedllm.data.public import public_set
from fedllm.flatness.distillation import Distillation
from fedllm.flatness.layer_choice import kept_rows
from fedllm.settings.experiment import Settings
from fedllm.settings.flatness import TeacherSettings
from fedllm.settings.kinds import TEACHERS, TeacherFacts
from fedllm.training.tunable import Tunable

Tensors = Mapping[str, Tensor]


class Teacher:
    """A teacher with given weights, which do not move by themselves (``public``).

    Args:
        settings: the section ``[teacher]``.
        weights: the teacher's tensors, float32, named and shaped as the model's.
        device: where the steps are taken: the backbone's.
        distillation: compares the two models' answers on public text, or None.

    Attributes:
        told: what the last :meth:`pull` may tell: norm of the difference before it
            (``teacher_distance``), and the mean divergence in its first step (``teacher_divergence``).
    """

    def __init__(
        self,
        settings: TeacherSettings,
        weights: Tensors,
        *,
        device: torch.device | str = "cpu",
        distillation: Distillation | None = None,
    ) -> None:
        self.settings = settings
        self.weights = {name: weights[name].detach().clone() for name in sorted(weights)}
        self.device = torch.device(device)
        self.distillation = distillation if settings.distillation > 0 else None
        self.told: dict[str, float] = {}
        if settings.distillation > 0 and distillation is None:
            raise ValueError(
                "Expected public text for teacher.distillation > 0, got none "
                f"with teacher.distillation={settings.distillation:g}"
            )

    def pull(self, params: Tensors, server_round: int) -> dict[str, Tensor]:
        """The model after the steps of this round; as it was in the first ``teacher.start`` rounds.

        Args:
            params: the model after the aggregation, float32 on the CPU.
            server_round: 1-based.

        Returns:
            New tensors on the CPU; ``params`` is not changed.

        Raises:
            ValueError: the teacher's tensors have other names or shapes.
        """
        self._check(params)
        self.told = {}
        if server_round <= self.settings.start:
            return dict(params)
        weights = {name: value.to(self.device) for name, value in params.items()}
        teacher = {name: value.to(self.device) for name, value in self.weights.items()}
        self.told["teacher_distance"] = distance(weights, teacher)
        for step in range(self.settings.steps):
            weights = self._step(weights, teacher, server_round, step)
        return {name: value.cpu() for name, value in weights.items()}

    def observe(self, params: Tensors) -> None:
        """Take note of the model that this round ends with, after :meth:`pull`."""

    def keep_layers(
        self, layers: Sequence[int], kept: Sequence[int], tunable: Tunable | None = None
    ) -> None:
        """Drop what belongs to layers that are left out.

        Args:
            layers: those that the adapter had.
            kept: those that it keeps.
            tunable: the model with the kept layers; needed with distillation.
        """
        self.weights = kept_rows(self.weights, layers, kept)
        if self.distillation is not None:
            if tunable is None:
                raise ValueError("Expected the model of the kept layers for distillation, got none")
            self.distillation.tunable = tunable

    def state(self) -> dict[str, Tensor]:
        """Return the state that a resumed run needs, for its checkpoint; empty if it is in the run folder."""
        return {}

    def load_state(self, state: Tensors) -> None:
        """Inverse of :meth:`state`.

        Raises:
            KeyError: a tensor is missing.
        """

    def _step(
        self, weights: Tensors, teacher: Tensors, server_round: int, step: int
    ) -> dict[str, Tensor]:
        settings = self.settings
        move = {name: settings.strength * (weights[name] - teacher[name]) for name in weights}
        if self.distillation is not None:
            batch = self.distillation.batch(server_round, step)
            gradient, mean = self.distillation.gradient(weights, teacher, batch)
            self.told.setdefault("teacher_divergence", mean)
            move = {name: move[name] + settings.distillation * gradient[name] for name in move}
        return {name: weights[name] - settings.learning_rate * move[name] for name in weights}

    def _check(self, params: Tensors) -> None:
        ours = {name: tuple(value.shape) for name, value in params.items()}
        theirs = {name: tuple(value.shape) for name, value in self.weights.items()}
        if ours != theirs:
            raise ValueError(f"Expected a teacher with the tensors {ours}, got {theirs}")


class EmaTeacher(Teacher):
    """The moving average of the released models: ``w'_0 = w_0``, ``w'_t = d w'_{t-1} + (1 - d) w_t``.

    In round t the model is pulled towards ``w'_{t-1}`` first, and the average takes the pulled model
    in after. It moves in the first ``teacher.start`` rounds as well.
    """

    def observe(self, params: Tensors) -> None:
        self._check(params)
        decay = self.settings.decay
        self.weights = {
            name: decay * value + (1 - decay) * params[name] for name, value in self.weights.items()
        }

    def state(self) -> dict[str, Tensor]:
        return dict(self.weights)

    def load_state(self, state: Tensors) -> None:
        self.weights = {name: state[name].clone() for name in self.weights}


class Make(Protocol):
    """Makes a teacher from the model that the run begins with (``public``: from the trained teacher's weights)."""

    def __call__(
        self,
        settings: TeacherSettings,
        weights: Tensors,
        *,
        device: torch.device,
        distillation: Distillation | None,
    ) -> Teacher: ...


@dataclass(frozen=True)
class TeacherKind:
    """A kind of teacher of another package.

    Attributes:
        name: the value of ``teacher.kind``.
        make: makes it; a subclass of :class:`Teacher` will do.
        sentence: for the report: where its weights come from, which is nothing but released models, public text
            and settings.
    """

    name: str
    make: Make
    sentence: str


_MAKERS: dict[str, Make] = {"ema": EmaTeacher, "public": Teacher, "nonprivate": Teacher}


def register_teacher(kind: TeacherKind) -> Callable[[], None]:
    """Add a kind of teacher to this process.

    Returns:
        A function that takes it away again.

    Raises:
        ValueError: there is one of that name, or there are no words for the report.
    """
    if not kind.sentence.strip():
        raise ValueError(
            f"Expected a sentence that says where the weights of the teacher {kind.name!r} come from, got none"
        )
    TEACHERS.add(kind.name, TeacherFacts(sentence=kind.sentence))
    _MAKERS[kind.name] = kind.make

    def forget() -> None:
        TEACHERS.remove(kind.name)
        _MAKERS.pop(kind.name, None)

    return forget


def make_teacher(
    settings: TeacherSettings,
    weights: Tensors,
    *,
    device: torch.device,
    distillation: Distillation | None,
) -> Teacher:
    """The teacher that the settings ask for.

    Args:
        weights: of the model that the run begins with; ``public``: of the trained teacher.
        device: the backbone's.
        distillation: see :func:`make_distillation`.

    Raises:
        ValueError: ``teacher.kind`` is none.
    """
    make = _MAKERS.get(settings.kind)
    if make is None:
        raise ValueError(
            f"Expected teacher.kind among {', '.join(_MAKERS)} to make a teacher, got {settings.kind!r}"
        )
    return make(settings, weights, device=device, distillation=distillation)


def distance(first: Tensors, second: Tensors) -> float:
    """L2 norm of the difference over all tensors."""
    squares = (float((first[n] - second[n]).double().square().sum()) for n in sorted(first))
    return math.sqrt(sum(squares))


def make_distillation(settings: Settings, tunable: Tunable) -> Distillation | None:
    """The distillation that the settings ask for; None for none.

    Raises:
        DataError: the public text cannot be had.
    """
    teacher = settings.teacher
    if teacher.kind == "none" or teacher.distillation == 0:
        return None
    public = public_set(settings, labelled=False)
    return Distillation(
        tunable=tunable,
        features=tunable.task.features(public.records),
        temperature=teacher.temperature,
        batch_size=teacher.batch_size,
        max_tokens=settings.client.max_tokens,
        seed=settings.seed,
    )
