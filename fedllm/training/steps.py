"""What all ways of training at a silo share: randomness by purpose, a step's batch, what is counted, the result.

By gradients it is :mod:`fedllm.training.dp_sgd`, through a model's outputs alone :mod:`fedllm.training.zeroth_order`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.settings.experiment import Settings
from fedllm.training.batch.contained import Failures
from privacy.mechanisms.sampling import poisson_sample
from privacy.randomness import RandomSource

Streams = Callable[..., RandomSource]
"""``streams(purpose, step)`` gives the random generator for one use; never the same one twice."""


@dataclass(frozen=True)
class LocalResult:
    """What one round of local training gives.

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
    """What a silo counts of its own steps; private."""

    examples: int = 0
    clipped: int = 0
    nonfinite: int = 0
    norms: list[Tensor] = field(default_factory=list)
    failures: Failures = field(default_factory=Failures)

    def contained(self, settings: Settings) -> Failures | None:
        """Where examples that raise are counted; None without privacy, where they raise."""
        return self.failures if settings.privacy.mode == "dp" else None

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
        """The round's result with these counts."""
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
    """A step's batch: each example by itself with the sampling rate; may be empty, and any size."""
    drawn = poisson_sample(len(features), sampling_rate, rng)
    return [features[i] for i in drawn]


def check_noise(settings: Settings, noise_multiplier: float) -> None:
    """Refuse a noise multiplier that would break the promised mechanism.

    Raises:
        ValueError: zero or non-finite noise where the silo adds it, or noise where it must not.
    """
    privacy = settings.privacy
    needs_noise = privacy.mode == "dp" and privacy.noise_by == "client"
    if needs_noise and not (np.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError(
            "Expected a finite noise_multiplier > 0 for privacy.mode=dp with noise by the client, "
            f"got noise_multiplier={noise_multiplier}"
        )
    if not needs_noise and noise_multiplier != 0:
        raise ValueError(
            f"Expected noise_multiplier=0 for privacy.mode={privacy.mode}, "
            f"privacy.noise_by={privacy.noise_by}, got noise_multiplier={noise_multiplier}"
        )
