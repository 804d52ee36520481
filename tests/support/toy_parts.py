"""A mechanism, a codec, a task and a teacher as another package would add them; docs/guides/extend.md shows this file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from dp_accounting.dp_event import DpEvent
from torch import Tensor

from fedllm.codec import Codec, CodecFacts, CodecKind
from fedllm.data.batches import Batch
from fedllm.flatness.teacher import Teacher, TeacherKind
from fedllm.tasks import TaskFacts, TaskKind
from fedllm.tasks.base import Params, required
from fedllm.tasks.encoder_classification import HeadClassification
from fedllm.training.mechanism import Kind
from fedllm.training.noise import RoundCost
from fedllm.training.steps import LocalResult, LocalWork
from privacy.events.constructors import pure_dp
from privacy.events.multiset import multiset

EPSILON, STEP = 0.25, 0.01


@dataclass(frozen=True)
class OneBit:
    """One step along a random direction, forwards or backwards: the sign by randomised response.

    Guarantee: pure EPSILON-DP. The direction is drawn without the data. Given it, there are two messages, and the
    probability of each is at most e^EPSILON times its probability with any other data.
    """

    sampling_rate: float
    noise_multiplier: float
    clip: float = 1.0
    private = True
    adaptive = False

    def events(self, server_round: int) -> Counter[DpEvent]:
        return multiset({pure_dp(EPSILON): 1})  # in the ledger before train() is called

    def train(self, work: LocalWork) -> LocalResult:
        rng = work.streams("noise", 0)
        along = {
            name: STEP * torch.from_numpy(rng.standard_normal(tuple(value.shape))).float()
            for name, value in sorted(work.params.items())
        }
        ahead, behind = self.loss(work, along, 1), self.loss(work, along, -1)
        honest = float(rng.random((1,))[0]) < 1 / (1 + math.exp(-EPSILON))
        sign = 1.0 if (ahead < behind) == honest else -1.0
        update = {name: sign * value for name, value in along.items()}
        return LocalResult(update, None, len(work.features), 0, 0, math.nan)

    def loss(self, work: LocalWork, along: Mapping[str, Tensor], sign: int) -> float:
        point = {name: value + sign * along[name] for name, value in work.params.items()}
        if not work.features:  # a trial before anything is spent
            return 0.0
        return work.tunable.evaluate(point, work.features, max_tokens=4096)["loss"]

    def at_clip(self, clip: float | None) -> OneBit:
        return self

    def at_silo(self) -> OneBit:
        return self

    def cost(self) -> RoundCost:
        return RoundCost(1.0, 1)

    def release_noise(self) -> None:
        return None

    def noise_std(self, params: Mapping[str, Tensor]) -> None:
        return None


ONE_BIT = Kind(
    "one-bit",
    applies=lambda settings: settings.name == "one-bit",
    make=lambda settings, sampling_rate, noise: OneBit(sampling_rate, noise),
)


class EveryOther(Codec):
    """Every other coordinate; the rest decode to zero. Linear, with Lipschitz constant 1."""

    name = "every-other"
    linear = True
    lipschitz = 1.0

    def __init__(self, dimension: int) -> None:
        self.dimension, self.code_dimension = dimension, (dimension + 1) // 2

    def project(self, vectors: Tensor) -> Tensor:
        return vectors[..., ::2].contiguous()

    def reconstruct(self, codes: Tensor) -> Tensor:
        vectors = codes.new_zeros(*codes.shape[:-1], self.dimension)
        vectors[..., ::2] = codes
        return vectors

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"name": self.name, "dimension": self.dimension}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> EveryOther:
        return cls(int(meta["dimension"]))


EVERY_OTHER = CodecKind(
    EveryOther,
    make=lambda settings, dimension, prior, seed: EveryOther(dimension),
    form=lambda settings, dimension: ({"name": "every-other", "dimension": dimension}, {}),
    facts=CodecFacts(lipschitz=True, bounded=True),
)


class Brier(HeadClassification):
    """Classification with the squared error of the classes' shares as the loss."""

    def losses(self, params: Params, batch: Batch) -> Tensor:
        shares = self.logits(params, batch).softmax(-1)
        truth = torch.nn.functional.one_hot(required(batch.targets, "targets"), len(self.labels))
        return (shares - truth).square().sum(-1)

    def evaluate(self, params: Params, batches: Sequence[Batch]) -> dict[str, float]:
        found = super().evaluate(params, batches)
        expanded = [
            {name: value.expand(len(batch), *value.shape) for name, value in params.items()}
            for batch in batches
        ]
        losses = [self.losses(p, b) for p, b in zip(expanded, batches, strict=True)]
        return found | {"brier": float(torch.cat(losses).mean())}


BRIER = TaskKind("brier", Brier, TaskFacts(classes=True, accuracy=True, backbone="encoder"))


class Zeros(Teacher):
    """A model of zeros: the pull towards it is weight decay."""

    def __init__(self, settings: Any, weights: Mapping[str, Tensor], **options: Any) -> None:
        zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
        super().__init__(settings, zeros, **options)


ZEROS = TeacherKind("zeros", Zeros, "Its weights are zero.")
