"""Shared parts of all kinds of training at a silo: a round's work, its steps, its counts, its result.

By gradients it is :mod:`fedllm.training.dp_sgd` and :mod:`fedllm.training.client_update`, through a model's outputs
alone :mod:`fedllm.training.zeroth_order`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.settings.experiment import Settings
from fedllm.settings.flatness import AwpSettings
from fedllm.training.batch.contained import Failures
from fedllm.training.black_box.directions import Directions
from fedllm.training.encoding import Encoding
from fedllm.training.gradients import gradient_sum
from fedllm.training.perturbation import perturbation_of
from fedllm.training.tunable import Tunable
from privacy.mechanisms.sampling import poisson_sample
from privacy.randomness import RandomSource

Streams = Callable[..., RandomSource]
"""``streams(purpose, step)`` gives the random generator for one use; never the same one twice."""


@dataclass(frozen=True)
class LocalWork:
    """A silo's input for one round of training.

    Attributes:
        tunable: the model.
        params: global parameters, float32.
        features: the silo's training examples.
        streams: source of randomness for sampling ("sample"), noise ("noise") and the rounding of
            codes ("round").
        server_round: the round, >= 1; the weights are perturbed in the first ``awp.rounds`` alone.
        encoding: how the update is encoded; None sends it as it is.
        directions: random directions of the round, for a model that gives losses alone.
    """

    tunable: Tunable
    params: Mapping[str, Tensor]
    features: Sequence[Feature]
    streams: Streams
    server_round: int = 1
    encoding: Encoding | None = None
    directions: Directions | None = None


@dataclass(frozen=True)
class StepPlan:
    """The numbers of a round's local steps.

    Attributes:
        count: of steps.
        divisor: of each gradient sum: ``client.batch_size``, whatever the Poisson batch drawn.
        max_tokens: padded tokens of a micro-batch.
        awp: where gradients are taken.
    """

    count: int
    learning_rate: float
    optimizer: str
    divisor: float
    max_tokens: int
    awp: AwpSettings

    @classmethod
    def of(cls, settings: Settings) -> StepPlan:
        """Return the plan of the settings."""
        client = settings.client
        return cls(
            count=client.local_steps,
            learning_rate=client.learning_rate,
            optimizer=client.optimizer,
            divisor=float(client.batch_size or 1),
            max_tokens=client.max_tokens,
            awp=settings.awp,
        )


@dataclass(frozen=True)
class LocalResult:
    """Result of one round of local training.

    Attributes:
        update: new minus old parameters, float32 on the CPU, or with a codec the tensors of their
            code, or the numbers along random directions; safe to release (see :mod:`fedllm.training.dp_sgd`).
        noise_std: standard deviation of the privacy noise in each entry of each tensor of ``update``
            (data-independent), or None where it is not known (local Adam, most codecs).
        examples, clipped, nonfinite, failed: numbers over all local steps (``failed``: examples that raised and
            count as zero). Private: for the silo's own log,
            not to be sent.
        median_norm: median norm before clipping; private as well, NaN for no example.
        below: adaptive clipping: noisy share of norms at most the clipping norm, part of what the
            round's event counts; without noise by the client whether the update was (private). Else None.
    """

    update: dict[str, Tensor]
    noise_std: dict[str, float] | None
    examples: int
    clipped: int
    nonfinite: int
    median_norm: float
    below: float | None = None
    failed: int = 0


@dataclass
class Tally:
    """A silo's private counts of its own steps."""

    examples: int = 0
    clipped: int = 0
    nonfinite: int = 0
    norms: list[Tensor] = field(default_factory=list)
    failures: Failures = field(default_factory=Failures)

    def add(self, counts: tuple[int, int, int], norms: Tensor) -> None:
        """Count a clipped sum: its examples, those clipped, those not finite, and the norms before."""
        self.examples += counts[0]
        self.clipped += counts[1]
        self.nonfinite += counts[2]
        self.norms.append(norms)

    def result(
        self,
        update: dict[str, Tensor],
        noise_std: dict[str, float] | None = None,
        below: float | None = None,
    ) -> LocalResult:
        """Return the round's result with these counts."""
        norms = torch.cat([torch.zeros(0), *self.norms])
        return LocalResult(
            update=update,
            noise_std=noise_std,
            examples=self.examples,
            clipped=self.clipped,
            nonfinite=self.nonfinite,
            median_norm=float(norms.median()) if len(norms) else float("nan"),
            below=below,
            failed=self.failures.count,
        )


def poisson_batch(
    features: Sequence[Feature], sampling_rate: float, rng: RandomSource
) -> list[Feature]:
    """Return a step's batch: each example by itself with the sampling rate; may be empty, and any size."""
    drawn = poisson_sample(len(features), sampling_rate, rng)
    return [features[i] for i in drawn]


def check_noise(mode: str, noise_by: str, noise_multiplier: float) -> None:
    """Refuse a noise multiplier that would break the promised mechanism.

    Args:
        mode, noise_by: of ``[privacy]``.
        noise_multiplier: of the noise that the silo itself is to add.

    Raises:
        ValueError: zero or non-finite noise where the silo adds it, or noise where it must not.
    """
    needs_noise = mode == "dp" and noise_by == "client"
    if needs_noise and not (np.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError(
            "Expected a finite noise_multiplier > 0 for privacy.mode=dp with noise by the client, "
            f"got noise_multiplier={noise_multiplier}"
        )
    if not needs_noise and noise_multiplier != 0:
        raise ValueError(
            f"Expected noise_multiplier=0 for privacy.mode={mode}, "
            f"privacy.noise_by={noise_by}, got noise_multiplier={noise_multiplier}"
        )


class Descent:
    """The weights of one round of training, moved step by step.

    Attributes:
        weights: at the current step, by sorted name, on the model's device.
        perturbation: of the round; None for none.
        own: the perturbation where each example has its own (``awp.form = "per-example"``); else None.
    """

    def __init__(self, work: LocalWork, plan: StepPlan) -> None:
        device = work.tunable.backbone.device
        self._work, self._plan = work, plan
        self._start = {
            name: work.params[name].to(device=device, dtype=torch.float32)
            for name in sorted(work.params)
        }
        self.weights = {name: value.clone() for name, value in self._start.items()}
        kind = torch.optim.Adam if plan.optimizer == "adam" else torch.optim.SGD
        self._optimizer = kind(list(self.weights.values()), lr=plan.learning_rate)
        self.perturbation = None
        if plan.awp.form != "none":
            self.perturbation = perturbation_of(plan.awp, work.server_round)
        self.own = self.perturbation if plan.awp.form == "per-example" else None

    def point(self, batch: Sequence[Feature], failures: Failures | None) -> Mapping[str, Tensor]:
        """Return the point of the step's gradients: with ``awp.form = "batch"`` perturbed along the batch's raw
        gradient."""
        if self.perturbation is None or self.own is not None:
            return self.weights
        raw = gradient_sum(
            self._work.tunable,
            self.weights,
            batch,
            max_tokens=self._plan.max_tokens,
            failures=failures,
        )
        return self.perturbation.perturbed(self.weights, dict(zip(self.weights, raw, strict=True)))

    def move(self, sums: Mapping[str, Tensor]) -> None:
        """Take a step along a gradient sum."""
        for name, total in sums.items():
            gradient = total / self._plan.divisor
            self.weights[name].grad = gradient.to(self.weights[name].dtype)
        self._optimizer.step()

    def update(self) -> dict[str, Tensor]:
        """Return new minus old parameters, on the CPU."""
        return {n: (self.weights[n].detach() - self._start[n]).cpu() for n in self.weights}


def plain_update(
    work: LocalWork, plan: StepPlan, sampling_rate: float, tally: Tally, failures: Failures | None
) -> dict[str, Tensor]:
    """Return the update of local steps without clipping and noise: private.

    Args:
        sampling_rate: probability of each example to be in a step's batch.
        tally: counts the examples.
        failures: where examples that raise are counted; None lets them raise.
    """
    descent = Descent(work, plan)
    for step in range(plan.count):
        batch = poisson_batch(work.features, sampling_rate, work.streams("sample", step))
        sums = gradient_sum(
            work.tunable,
            descent.point(batch, failures),
            batch,
            max_tokens=plan.max_tokens,
            perturbation=descent.own,
            failures=failures,
        )
        tally.examples += len(batch)
        descent.move(dict(zip(descent.weights, sums, strict=True)))
    return descent.update()


def split_like(flat: Tensor, like: Mapping[str, Tensor]) -> list[Tensor]:
    """Cut a flat vector into the shapes of ``like``, in the order of sorted names."""
    names = sorted(like)
    pieces = flat.split([like[name].numel() for name in names])
    return [piece.reshape(like[name].shape) for piece, name in zip(pieces, names, strict=True)]
