"""Output distillation on public text: how far the model's answers are from a teacher's, and the gradient.

Guarantee: a function of the two models and of public text; if both models carry a guarantee (or none is
needed, as for a teacher trained on public text), so does the result, by post-processing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.tasks.base import expand_params
from fedllm.training.tunable import Tunable
from privacy.randomness import generator


def divergences(scores: Tensor, teacher: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Return the Kullback-Leibler divergence of the model from the teacher for each example, (B,).

    ``T^2 sum_n weight_n KL(softmax(teacher_n / T) || softmax(scores_n / T))``; the factor ``T^2`` keeps the
    gradient's size whatever the temperature T (Hinton, Vinyals and Dean 2015, arXiv 1503.02531).

    Args:
        scores, teacher: unnormalised log-probabilities (B, N, C) of N predictions an example.
        weights: (B, N) weight of each prediction, 0 for none.
    """
    ours = torch.log_softmax(scores / temperature, dim=-1)
    theirs = torch.log_softmax(teacher / temperature, dim=-1)
    each = (theirs.exp() * (theirs - ours)).sum(-1)
    return temperature**2 * (each * weights).sum(1)


@dataclass
class Distillation:
    """The public examples, and how a batch of them is drawn and compared.

    Attributes:
        tunable: the backbone, with the prefix's shape.
        features: public examples; their labels are not used (a text to write is what is compared on).
        temperature: of the softmax.
        batch_size: examples of a step; all where there are no more.
        max_tokens: padded tokens of a physical micro-batch.
        seed: batches are drawn by this, the round and the step, without replacement.
    """

    tunable: Tunable
    features: Sequence[Feature]
    temperature: float
    batch_size: int
    max_tokens: int
    seed: int

    def batch(self, server_round: int, step: int) -> list[Feature]:
        """Return the public examples of a step."""
        size = min(self.batch_size, len(self.features))
        rng = generator(self.seed, "distillation", server_round, step)
        drawn = sorted(rng.choice(len(self.features), size=size, replace=False).tolist())
        return [self.features[i] for i in drawn]

    def gradient(
        self, params: Mapping[str, Tensor], teacher: Mapping[str, Tensor], batch: Sequence[Feature]
    ) -> tuple[dict[str, Tensor], float]:
        """Return the gradient of the mean divergence with respect to ``params``, and the mean itself.

        Args:
            params, teacher: trainable tensors, float32, on the backbone's device.
            batch: at least one public example.
        """
        task = self.tunable.task
        total = {name: torch.zeros_like(value) for name, value in params.items()}
        mean = 0.0
        for group in task.batches(batch, self.max_tokens):
            part = task.collate([batch[i] for i in group])
            with torch.no_grad():
                theirs, weights = self.tunable.scores(expand_params(teacher, len(part)), part)
            leaves = {name: value.clone().requires_grad_(True) for name, value in params.items()}
            ours, _ = self.tunable.scores(self.tunable.expanded(leaves, len(part)), part)
            loss = divergences(ours, theirs, weights, self.temperature).sum() / len(batch)
            grads = torch.autograd.grad(loss, list(leaves.values()))
            total = {n: total[n] + g for n, g in zip(leaves, grads, strict=True)}
            mean += float(loss.detach())
        return total, mean
