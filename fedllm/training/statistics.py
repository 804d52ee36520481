"""The statistics of a silo's gradients before training, released under differential privacy.

What the codec's prior is made of (DR-Encoder's first stage), at a public point
(:func:`statistics_point`). The mechanism and its sensitivity are in :mod:`fedllm.codec.statistics`; the caller must have recorded
the event before. With noise by a trusted server a silo sends its statistic as it is, and the
server's :mod:`server.extensions.central_noise` clips, records and adds the noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedllm.codec.layout import Layout
from fedllm.codec.prior import (
    Prior,
    chance_of_noise,
    prior_from_gradients,
    prior_from_releases,
)
from fedllm.codec.statistics import Statistics
from fedllm.data.batches import Feature
from fedllm.settings.codec import CodecSettings
from fedllm.settings.experiment import Settings
from fedllm.training.batch.contained import Failures, example_rows, report_lost_step
from fedllm.training.gradients import (
    clipped_gradient_sum,
    gradient_scales,
    gradient_sum,
    per_example_gradients,
)
from fedllm.training.steps import LocalWork, StepPlan, Streams, Tally, plain_update
from fedllm.training.tunable import Tunable
from privacy.mechanisms.sampling import poisson_sample
from privacy.randomness import generator

_PUBLIC_GRADIENTS = 32


def statistics_of(settings: Settings, params: Mapping[str, Tensor]) -> Statistics:
    """The statistic that these settings ask for."""
    return Statistics(settings.codec.prior, Layout.of(params), settings.privacy.clip)


def statistics_point(params: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Where gradients are taken for the prior: the initial parameters, with an ordinary random head.

    A head of zeros, as training starts with, passes no gradient on to the prefix: its statistics would
    say nothing of it. Matrices of zeros become Gaussian with variance 1/columns. Public: a
    function of the initial parameters and the seed.
    """
    point = {}
    for name in sorted(params):
        value = params[name].clone()
        if value.dim() > 1 and not bool(value.any()):
            drawn = generator(seed, "codec", "statistics-point", name)
            noise = drawn.standard_normal(tuple(value.shape)) * value.shape[-1] ** -0.5
            value = torch.from_numpy(noise).float()
        point[name] = value
    return point


def release_statistics(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    settings: Settings,
    *,
    sampling_rate: float,
    streams: Streams,
) -> Tensor:
    """A silo's noisy statistics, float64 [size].

    Unit example: of the gradients of a Poisson batch, each clipped, over ``client.batch_size``; the
    event is the Poisson-sampled Gaussian. Unit client: of the clipped update of one local round.
    Without privacy (``privacy.mode = "none"``) there is no noise, and with noise by the server none of
    the silo's: what is returned is then private, and for the trusted server alone.
    """
    statistics = statistics_of(settings, params)
    divisor = 1.0
    if settings.privacy.unit == "client":
        failures = Failures() if settings.privacy.mode == "dp" else None
        work = LocalWork(tunable, params, features, streams)
        update = plain_update(work, StepPlan.of(settings), sampling_rate, Tally(), failures)
        total = statistics.of(statistics.layout.flatten(update))
    else:
        divisor = float(settings.client.batch_size or 1)
        drawn = poisson_sample(len(features), sampling_rate, streams("sample", 0))
        total = _total(statistics, tunable, params, [features[i] for i in drawn], settings)
    if settings.privacy.mode == "none" or settings.privacy.noise_by == "server":
        return total / divisor
    noise = settings.codec.statistics_noise
    return statistics.release(total, noise, streams("noise", 0), divisor=divisor)


def _total(
    statistics: Statistics,
    tunable: Tunable,
    params: Mapping[str, Tensor],
    batch: Sequence[Feature],
    settings: Settings,
) -> Tensor:
    """Sum of the examples' statistics, micro-batch by micro-batch."""
    point, scales = (
        _on_device(tunable, params),
        gradient_scales(settings.privacy.prefix_scale, params),
    )
    total = torch.zeros(statistics.size, dtype=torch.float64)
    failures = Failures() if settings.privacy.mode == "dp" else None

    def compute(chosen: Sequence[Feature]) -> list[Tensor]:
        grads = per_example_gradients(tunable, point, tunable.task.collate(chosen))
        rows = [grads.pop(name).flatten(1).cpu() * scales[name] for name in sorted(scales)]
        return [torch.cat(rows, dim=1)]

    size = (statistics.layout.dimension,)
    for group in tunable.task.batches(batch, settings.client.max_tokens):
        (rows,) = example_rows(compute, [batch[i] for i in group], [size], failures)
        total += statistics.total(rows)
    if failures is not None:
        report_lost_step(len(batch), failures.count)
    return total


def prior_of_releases(
    settings: Settings, params: Mapping[str, Tensor], releases: Mapping[str, Tensor]
) -> Prior:
    """The prior of what the silos released, by name: post-processing.

    Raises:
        ValueError: no release.
    """
    prior = prior_from_releases(
        statistics_of(settings, params),
        torch.stack([releases[name] for name in sorted(releases)]) if releases else torch.zeros(0),
        **_noise(settings, releases),
        rank=settings.codec.rank,
    )
    return prior if settings.privacy.unit == "client" else _scaled(prior, _reach(settings))


def chance_of_noise_in(settings: Settings, releases: Mapping[str, Tensor]) -> float | None:
    """The probability that noise alone gives what the silos released; None without noise."""
    rows = torch.stack([releases[name] for name in sorted(releases)])
    return chance_of_noise(rows, **_noise(settings, releases))


def _noise(settings: Settings, silos: Iterable[str]) -> dict[str, float]:
    """Of the silos' releases. Their divisors may differ, and so their noise: the root mean square is that
    of their mean."""
    by_client = settings.privacy.unit == "client"
    divisors = [
        1.0 if by_client else float(settings.for_silo(name).client.batch_size or 1)
        for name in sorted(silos)  # not as they answered: the same bits each time
    ]
    return {
        "noise_multiplier": settings.codec.statistics_noise
        if settings.privacy.mode == "dp"
        else 0.0,
        "divisor": float(np.mean(np.power(divisors, -2.0)) ** -0.5) if divisors else 1.0,
    }


def prior_of_mean(
    settings: Settings, params: Mapping[str, Tensor], mean: Tensor, silos: int
) -> tuple[Prior, float | None]:
    """The prior of what a trusted server released: the mean over ``silos`` of their statistics [size]
    (unit client), with one noise for all; and the probability that noise alone gives it.
    Post-processing."""
    noise = settings.codec.statistics_noise / silos
    statistics = statistics_of(settings, params)
    prior = prior_from_releases(statistics, mean[None], noise_multiplier=noise)
    return prior, chance_of_noise(mean[None], noise_multiplier=noise)


def _reach(settings: Settings) -> float:
    """From a gradient to an update: how far a round of SGD goes where the gradient stays the same."""
    return settings.client.learning_rate * settings.client.local_steps


def _scaled(prior: Prior, factor: float) -> Prior:
    """The prior of ``factor`` times the vector."""
    return replace(
        prior,
        mean=prior.mean * factor,
        variance=prior.variance * factor**2,
        basis_variance=prior.basis_variance * factor**2,
    )


def prior_of_public_text(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    settings: Settings,
) -> Prior:
    """The prior of gradients of examples that no silo has: free.

    Mean gradients of at least 32 groups of examples, and of four times ``codec.rank`` where there are
    enough, clipped as in training. Classification: what a label changes. Labels are drawn at random,
    each class equally often in a group, so that the codec knows nothing of the labels that the model is
    judged by, and half the difference is taken to the gradient with each label moved on to the next
    class. The model's own answers cancel out in it. Without that, the direction that all texts
    share (the mean feature, half the energy of a head's gradient) would come first: it tells how
    often the classes occur, and hardly which text is of which.

    Raises:
        ValueError: fewer examples than classes, or gradients that are all zero.
    """
    classes = len(settings.task.labels or ()) if settings.task.kind == "classification" else 1
    if len(features) < classes:
        raise ValueError(
            f"Expected at least {classes} public examples for codec.prior_source=public, got "
            f"{len(features)}"
        )
    rng = generator(settings.seed, "codec", "public-prior")
    groups = _public_groups(len(features), classes, settings.codec, rng)
    layout = Layout.of(params)
    rows = []
    for group in groups:
        chosen = [features[i] for i in group]
        size = float(len(group))
        if settings.task.kind == "classification":  # the order is random already
            drawn, moved = (
                [replace(f, target=(place + by) % classes) for place, f in enumerate(chosen)]
                for by in (0, 1)
            )
            row = _clipped_mean(tunable, params, drawn, settings, size)
            rows.append((row - _clipped_mean(tunable, params, moved, settings, size)) / 2)
        else:
            rows.append(_clipped_mean(tunable, params, chosen, settings, size))
    prior = prior_from_gradients(
        settings.codec.prior, layout, torch.stack(rows), rank=settings.codec.rank
    )
    return _scaled(prior, _reach(settings))


def _public_groups(
    count: int, classes: int, codec: CodecSettings, rng: np.random.Generator
) -> list[np.ndarray]:
    """Numbers of the examples of each group, in random order; the size is a multiple of ``classes``."""
    wanted = _PUBLIC_GRADIENTS
    if codec.prior == "low-rank":
        wanted = max(wanted, 4 * codec.rank)
    size = max(1, count // wanted // classes) * classes
    number = min(count // size, wanted)
    order = np.argsort(rng.random(count), kind="stable")[: number * size]
    return list(order.reshape(number, size))


def _clipped_mean(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    batch: Sequence[Feature],
    settings: Settings,
    divisor: float,
) -> Tensor:
    """Sum of the gradients (unit example: clipped one by one) over ``divisor``, as the codec sees
    them: flat and scaled, [d]."""
    layout, scales = Layout.of(params), gradient_scales(settings.privacy.prefix_scale, params)
    point = _on_device(tunable, params)
    tokens = settings.client.max_tokens
    if settings.privacy.unit == "example":
        clip = settings.privacy.clip
        sums = clipped_gradient_sum(
            tunable, point, batch, clip_norm=clip, scales=scales, max_tokens=tokens
        ).sums
    else:
        sums = gradient_sum(tunable, point, batch, max_tokens=tokens)
    named = {name: value.cpu() for name, value in zip(point, sums, strict=True)}
    return layout.flatten(named) / divisor


def _on_device(tunable: Tunable, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    device = tunable.backbone.device
    return {name: params[name].to(device=device, dtype=torch.float32) for name in sorted(params)}
