"""One round of local training with the mechanism that settings ask for, and no ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dp_accounting.dp_event import DpEvent
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.flatness.duplicate import duplicate_events
from fedllm.settings.experiment import Settings
from fedllm.training.black_box.forward_only import ForwardOnly
from fedllm.training.mechanism import make_mechanism
from fedllm.training.steps import LocalResult, LocalWork, Streams
from fedllm.training.tunable import Tunable


def train_locally(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    settings: Settings,
    *,
    sampling_rate: float,
    noise_multiplier: float,
    streams: Streams,
    **work: Any,
) -> LocalResult:
    """Train one round; ``work`` is the rest of :class:`LocalWork`."""
    mechanism = make_mechanism(
        settings, sampling_rate=sampling_rate, noise_multiplier=noise_multiplier
    )
    return mechanism.train(LocalWork(tunable, params, features, streams, **work))


def train_forward_only(
    model: ForwardOnly,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    settings: Settings,
    *,
    sampling_rate: float,
    noise_multiplier: float,
    streams: Streams,
    directions: Any,
) -> LocalResult:
    """Train one round through the outputs of any ``model``."""
    mechanism: Any = make_mechanism(
        settings, sampling_rate=sampling_rate, noise_multiplier=noise_multiplier
    )
    nothing: Any = None  # the model that is walked with is given
    work = LocalWork(nothing, params, features, streams, directions=directions)
    result: LocalResult = mechanism.walk(model, work)
    return result


def training_events(
    settings: Settings, server_round: int, *, sampling_rate: float, noise_multiplier: float
) -> Counter[DpEvent]:
    """The events of one round of training by a silo."""
    mechanism = make_mechanism(
        settings, sampling_rate=sampling_rate, noise_multiplier=noise_multiplier
    )
    return mechanism.events(server_round) + duplicate_events(settings)
