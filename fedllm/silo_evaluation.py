"""Count a silo's correct answers on its held-out examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedllm.contained import Failures, example_rows
from fedllm.inputs import Feature
from fedllm.tunable import Tunable


def correct_answers(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    max_tokens: int,
    failures: Failures | None,
) -> int:
    """Number of features that the model classifies correctly; with ``failures`` one that raises is not.

    Args:
        failures: as for :func:`fedllm.contained.example_rows`.
    """

    def compute(chosen: Sequence[Feature]) -> list[Tensor]:
        found = tunable.evaluate(params, chosen, max_tokens)["accuracy"]
        return [torch.tensor([round(found * len(chosen))])]

    correct = 0
    for group in tunable.task.batches(features, max_tokens):
        (counts,) = example_rows(compute, [features[i] for i in group], [()], failures)
        correct += int(counts.sum())
    return correct
