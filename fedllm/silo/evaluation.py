"""Count a silo's correct answers on held-out examples, and release the counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedllm.budget.limits import evaluation_sigma
from fedllm.data.batches import Feature
from fedllm.settings.experiment import Settings
from fedllm.training.batch.contained import Failures, example_rows
from fedllm.training.steps import Streams
from fedllm.training.tunable import Tunable
from privacy.mechanisms.discrete_gaussian import add_discrete_gaussian


def correct_answers(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    max_tokens: int,
    failures: Failures | None,
) -> int:
    """Return the number of features that the model classifies correctly; with ``failures`` one that raises is not.

    Args:
        failures: as for :func:`fedllm.training.batch.contained.example_rows`.
    """

    def compute(chosen: Sequence[Feature]) -> list[Tensor]:
        found = tunable.evaluate(params, chosen, max_tokens)["accuracy"]
        return [torch.tensor([round(found * len(chosen))])]

    correct = 0
    for group in tunable.task.batches(features, max_tokens):
        (counts,) = example_rows(compute, [features[i] for i in group], [()], failures)
        correct += int(counts.sum())
    return correct


def released_counts(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: list[Feature],
    settings: Settings,
    streams: Streams,
) -> tuple[int, int]:
    """Return the released counts of correct answers and of examples; an example that raises counts as incorrect."""
    private = settings.privacy.mode == "dp"
    failures = Failures() if private else None
    correct = correct_answers(tunable, params, features, settings.client.max_tokens, failures)
    pair = np.array([correct, len(features)])
    if settings.evaluation.clients == "private" and private:
        rng = streams("evaluate-noise", 0)
        pair = add_discrete_gaussian(pair, 1, evaluation_sigma(settings), rng)
    return int(pair[0]), int(pair[1])
