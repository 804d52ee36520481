"""Count a silo's correct answers on held-out examples, and release the counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from dp_accounting.dp_event import DpEvent
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.settings.experiment import Settings
from fedllm.training.batch.contained import Failures, example_rows
from fedllm.training.steps import Streams
from fedllm.training.tunable import Tunable
from privacy.events.constructors import discrete_gaussian, no_guarantee
from privacy.events.multiset import multiset
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


@dataclass(frozen=True)
class CountRelease:
    """The release of a silo's two counts (correct answers, number of examples): what it is, and what it costs.

    Attributes:
        form: ``evaluation.clients``; an undecided ``auto`` is ``off``.
        noise: noise multiplier of the pair, ``evaluation.clients_noise``.
        contained: whether an example that raises counts as incorrect (``privacy.mode = "dp"``), instead of raising.
        max_tokens: padded tokens of a micro-batch.
    """

    form: str
    noise: float
    contained: bool
    max_tokens: int

    @property
    def private(self) -> bool:
        """True if the counts carry noise."""
        return self.form == "private" and self.contained

    @property
    def sigma(self) -> float:
        """Sigma of the discrete Gaussian noise on each of the counts."""
        return self.noise * math.sqrt(2)

    def events(self) -> Counter[DpEvent]:
        """Return the events of one release; empty where there is none."""
        if self.private:
            # Two numbers, and an example may change each by one: two events.
            return multiset({discrete_gaussian(self.sigma): 2})
        if self.form == "off":
            return Counter()
        return multiset({no_guarantee("evaluation.clients=raw: counts sent as they are"): 1})

    def release(
        self,
        tunable: Tunable,
        params: Mapping[str, Tensor],
        features: list[Feature],
        streams: Streams,
    ) -> tuple[int, int]:
        """Return the released counts of correct answers and of examples; an example that raises counts as incorrect."""
        failures = Failures() if self.contained else None
        correct = correct_answers(tunable, params, features, self.max_tokens, failures)
        pair = np.array([correct, len(features)])
        if self.private:
            pair = add_discrete_gaussian(pair, 1, self.sigma, streams("evaluate-noise", 0))
        return int(pair[0]), int(pair[1])


def make_count_release(settings: Settings) -> CountRelease:
    """Return the release that the settings ask a silo for."""
    return CountRelease(
        form=settings.evaluation.clients if settings.evaluation.by_silos else "off",
        noise=settings.evaluation.clients_noise,
        contained=settings.privacy.mode == "dp",
        max_tokens=settings.client.max_tokens,
    )
