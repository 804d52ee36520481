"""Steps of a fixed shape: what is computed in a step, and how much, does not depend on the data.

With ``client.max_batch`` a step's Poisson sample is truncated to B examples, chosen uniformly at random
(:func:`privacy.mechanisms.sampling.truncated_poisson_sample`). Each example is padded to the task's public bound, and the
batch is filled up to B rows with a public example, whose gradients are replaced by zeros. So each step
computes the same number of micro-batches of one shape, whatever was drawn.

Guarantee (unit ``example``): one step is a Gaussian mechanism on a truncated Poisson sample; its event is
dp_accounting's TruncatedSubsampledGaussianDpEvent with the silo's public number of examples. Fillers are public
and contribute zero.

What still depends on the data: an example that raises is computed again (records are checked when the data are
opened, :mod:`fedllm.silo.opened`); and what hardware does with values alone, such as subnormal numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from fedllm.data.batches import Feature
from fedllm.data.shapes import Shapes
from fedllm.training.batch.rehearsal import public_feature
from fedllm.training.tunable import Tunable
from privacy.mechanisms.sampling import truncated_poisson_sample
from privacy.randomness import RandomSource


@dataclass(frozen=True)
class FixedShape:
    """Filling of the steps of one training.

    Attributes:
        tunable: with a task whose micro-batches all have one shape.
        most: B, the most examples of a step.
        slots: rows of a step: B or a few more, a multiple of the rows of a micro-batch.
        max_tokens: padded tokens of a micro-batch.
        filler: a public example.
    """

    tunable: Tunable
    most: int
    slots: int
    max_tokens: int
    filler: Feature

    @classmethod
    def of(cls, tunable: Tunable, most: int, max_tokens: int) -> FixedShape:
        """The shape of steps of at most ``most`` examples, in micro-batches of ``max_tokens`` padded tokens.

        Raises:
            ValueError: the task has no public bound on its examples' lengths.
        """
        length = tunable.task.longest
        if length is None:
            raise ValueError(
                "Expected a task with a bound on its tokens for client.max_batch, got one without"
            )
        room = max(1, max_tokens // length)
        parts = -(-most // min(room, tunable.task.rows_limit or room))
        rows = -(-most // parts)
        task = copy.copy(tunable.task)
        task.fixed = Shapes(least=length, tokens=rows * length, longest=length)
        fixed = tunable.with_task(task)
        filler = public_feature(fixed)
        return cls(fixed, most, parts * rows, rows * length, filler)

    def draw(
        self, features: Sequence[Feature], rate: float, rng: RandomSource
    ) -> tuple[list[Feature], int]:
        """A step's rows, fillers last, and how many of them are examples."""
        drawn = truncated_poisson_sample(len(features), rate, self.most, rng)
        batch = [features[i] for i in drawn]
        return [*batch, *[self.filler] * (self.slots - len(batch))], len(batch)
