"""The non-private teacher at a silo: a duplicate of the model, trained without clipping and noise.

Guarantee: none. What leaves the silo is the raw update of its examples. The silo's ledger takes a row
without a guarantee for each round of it (:func:`duplicate_events`), so that every epsilon of the silo is
infinite from then on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dp_accounting.dp_event import DpEvent
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.settings.experiment import Settings
from fedllm.settings.flatness import AwpSettings
from fedllm.training.steps import LocalWork, StepPlan, Streams, Tally, plain_update
from fedllm.training.tunable import Tunable
from privacy.events.constructors import no_guarantee
from privacy.events.multiset import multiset

RAW_DUPLICATE = (
    "teacher.kind=nonprivate: the silos train a duplicate of the model without clipping and noise, send its "
    "updates as they are, and the model is pulled towards it"
)
"""Reason why a run with the paper's own teacher has no guarantee."""


def duplicate_events(settings: Settings) -> Counter[DpEvent]:
    """Return a round's additional release with ``teacher.kind = "nonprivate"``: the raw update of a duplicate, one
    event without a guarantee; otherwise none."""
    if settings.teacher.kind != "nonprivate":
        return Counter()
    return multiset({no_guarantee(RAW_DUPLICATE): 1})


def duplicate_update(
    tunable: Tunable,
    duplicate: Mapping[str, Tensor],
    features: Sequence[Feature],
    plan: StepPlan,
    *,
    sampling_rate: float,
    streams: Streams,
) -> dict[str, Tensor]:
    """Return new minus old weights of the duplicate after one round of plain local training; raw.

    As many steps as the model's, on Poisson batches of the same rate and with the same divisor, but
    drawn by themselves; no perturbation of the weights.

    Args:
        duplicate: the duplicate's parameters, float32.
        plan: of the model's own local steps.
        streams: as for :class:`fedllm.training.steps.LocalWork`; the purposes begin with
            "duplicate-" here, since no stream may serve two uses.
    """
    work = LocalWork(
        tunable,
        duplicate,
        features,
        lambda purpose, step: streams(f"duplicate-{purpose}", step),
    )
    unperturbed = replace(plan, awp=AwpSettings(form="none"))
    return plain_update(work, unperturbed, sampling_rate, Tally(), None)
