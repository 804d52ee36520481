"""Train an adapter on all examples in one place, without privacy: the best that its form can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.training.gradients import gradient_sum
from fedllm.training.tunable import Tunable


@dataclass(frozen=True)
class Schedule:
    """Steps and learning rates: a linear rise over the first twentieth of the steps, then a linear fall to zero.

    Attributes:
        passes: over the training examples.
        batch: examples of a step.
        rate: the largest learning rate of Adam.
        max_tokens: of a micro-batch.
    """

    passes: float
    batch: int
    rate: float
    max_tokens: int = 2048

    def steps(self, examples: int) -> int:
        """Number of steps over this many examples."""
        return max(1, round(self.passes * examples / self.batch))

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate of a step (0-based)."""
        warm = max(1, steps // 20)
        if step < warm:
            return self.rate * (step + 1) / warm
        return self.rate * (steps - step) / max(1, steps - warm)


def train(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    schedule: Schedule,
    seed: int,
    say: Callable[[int, int], None] = lambda step, steps: None,
) -> tuple[dict[str, Tensor], float]:
    """Return all tensors after training, on the backbone's device, and the CPU seconds that it took.

    Args:
        params: all tensors before training, without a batch dimension.
        seed: of the order of the examples, which is drawn anew in each pass.
        say: told each step's number and the number of steps.
    """
    device = tunable.backbone.device
    start = {name: value.to(device=device, dtype=torch.float32) for name, value in params.items()}
    part, trained = tunable.part(start)
    names = sorted(trained)
    leaves = [trained[name].clone() for name in names]
    optimizer = torch.optim.Adam(leaves, lr=schedule.rate)
    steps, order = schedule.steps(len(features)), np.zeros(0, dtype=np.int64)
    rng, began = np.random.default_rng(seed), time.process_time()
    for step in range(steps):
        while len(order) < schedule.batch:
            order = np.concatenate([order, rng.permutation(len(features))])
        chosen = [features[i] for i in order[: schedule.batch]]
        order = order[schedule.batch :]
        now = dict(zip(names, leaves, strict=True))
        sums = gradient_sum(part, now, chosen, max_tokens=schedule.max_tokens)
        for leaf, total in zip(leaves, sums, strict=True):
            leaf.grad = total / len(chosen)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step, steps)
        optimizer.step()
        say(step + 1, steps)
    return start | dict(zip(names, leaves, strict=True)), time.process_time() - began
