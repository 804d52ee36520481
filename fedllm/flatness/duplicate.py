"""The non-private teacher at a silo: a duplicate of the model, trained without clipping and noise.

Guarantee: none. What leaves the silo is the raw update of its examples. The silo's ledger takes a row
without a guarantee for each round of it (:func:`fedllm.budget.limits.duplicate_events`), so that every epsilon of the silo is
infinite from then on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.settings.experiment import Settings
from fedllm.training.dp_sgd import local_update
from fedllm.training.steps import Streams
from fedllm.training.tunable import Tunable


def duplicate_update(
    tunable: Tunable,
    duplicate: Mapping[str, Tensor],
    features: Sequence[Feature],
    settings: Settings,
    *,
    sampling_rate: float,
    streams: Streams,
) -> dict[str, Tensor]:
    """New minus old weights of the duplicate after one round of plain local training; raw.

    As many steps as the model's, on Poisson batches of the same rate and with the same divisor, but
    drawn by themselves; no perturbation of the weights.

    Args:
        duplicate: the duplicate's parameters, float32.
        streams: as for :func:`fedllm.training.dp_sgd.train_locally`; the purposes begin with
            "duplicate-" here, since no stream may serve two uses.
    """
    plain = settings.model_copy(
        update={
            "privacy": settings.privacy.model_copy(update={"mode": "none"}),
            "awp": settings.awp.model_copy(update={"form": "none"}),
        }
    )
    return local_update(
        tunable,
        duplicate,
        features,
        plain,
        sampling_rate=sampling_rate,
        streams=lambda purpose, step: streams(f"duplicate-{purpose}", step),
    )
