"""The statistics of a silo's gradients before training, released under differential privacy.

What the codec's prior is made of (DR-Encoder's first stage), at a public point
(:func:`statistics_point`). The mechanism and its sensitivity are in :mod:`fedllm.codec.statistics`; the caller must have recorded
the event before. With noise by a trusted server a silo sends its statistic as it is, and the
server's :mod:`server.extensions.central_noise` clips, records and adds the noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from dp_accounting.dp_event import DpEvent
from torch import Tensor

from fedllm.codec.layout import Layout
from fedllm.codec.prior import (
    Prior,
    chance_of_noise,
    prior_from_gradients,
    prior_from_releases,
)
from fedllm.codec.statistics import Kind, Statistics
from fedllm.data.batches import Feature
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
from privacy.events.constructors import dp_sgd, gaussian, no_guarantee
from privacy.events.multiset import multiset
from privacy.mechanisms.sampling import poisson_sample
from privacy.randomness import generator

_PUBLIC_GRADIENTS = 32


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


@dataclass(frozen=True)
class StatisticsRelease:
    """The release of a silo's statistics: what it is made of, and what it costs.

    Attributes:
        asked: whether the codec asks the silos for statistics at all.
        kind: of the prior, ``codec.prior``.
        clip: the clipping norm.
        noise: ``codec.statistics_noise``.
        private: whether there is noise (``privacy.mode = "dp"``).
        by_client: whether the record is the silo with all its examples.
        by_server: whether a trusted server adds the noise.
        prefix_scale: of ``[privacy]``.
        plan: of a round's local steps.
    """

    asked: bool
    kind: Kind
    clip: float
    noise: float
    private: bool
    by_client: bool
    by_server: bool
    prefix_scale: float
    plan: StepPlan

    def events(self, sampling_rate: float) -> Counter[DpEvent]:
        """Return the events of the release; empty where the codec asks for none.

        Args:
            sampling_rate: of each example in the batch that the statistics are of (unit example).
        """
        if not self.asked:
            return Counter()
        if not self.private:
            return multiset({no_guarantee("privacy.mode=none: statistics without noise"): 1})
        if self.by_client:
            return multiset({gaussian(self.noise): 1})
        return multiset({dp_sgd(sampling_rate, self.noise, 1): 1})

    def statistics(self, params: Mapping[str, Tensor]) -> Statistics:
        """Return the statistic for parameters of these shapes."""
        return Statistics(self.kind, Layout.of(params), self.clip)

    def release(
        self,
        tunable: Tunable,
        params: Mapping[str, Tensor],
        features: Sequence[Feature],
        *,
        sampling_rate: float,
        streams: Streams,
    ) -> Tensor:
        """Return a silo's noisy statistics, float64 [size].

        Unit example: of the gradients of a Poisson batch, each clipped, over ``client.batch_size``; the
        event is the Poisson-sampled Gaussian. Unit client: of the clipped update of one local round.
        Without privacy (``privacy.mode = "none"``) there is no noise, and with noise by the server none of
        the silo's: what is returned is then private, and for the trusted server alone.
        """
        statistics = self.statistics(params)
        divisor = 1.0
        if self.by_client:
            failures = Failures() if self.private else None
            work = LocalWork(tunable, params, features, streams)
            update = plain_update(work, self.plan, sampling_rate, Tally(), failures)
            total = statistics.of(statistics.layout.flatten(update))
        else:
            divisor = self.plan.divisor
            drawn = poisson_sample(len(features), sampling_rate, streams("sample", 0))
            total = self._total(statistics, tunable, params, [features[i] for i in drawn])
        if not self.private or self.by_server:
            return total / divisor
        return statistics.release(total, self.noise, streams("noise", 0), divisor=divisor)

    def _total(
        self,
        statistics: Statistics,
        tunable: Tunable,
        params: Mapping[str, Tensor],
        batch: Sequence[Feature],
    ) -> Tensor:
        """Sum of the examples' statistics, micro-batch by micro-batch."""
        point, scales = _on_device(tunable, params), gradient_scales(self.prefix_scale, params)
        total = torch.zeros(statistics.size, dtype=torch.float64)
        failures = Failures() if self.private else None

        def compute(chosen: Sequence[Feature]) -> list[Tensor]:
            grads = per_example_gradients(tunable, point, tunable.task.collate(chosen))
            rows = [grads.pop(name).flatten(1).cpu() * scales[name] for name in sorted(scales)]
            return [torch.cat(rows, dim=1)]

        size = (statistics.layout.dimension,)
        for group in tunable.task.batches(batch, self.plan.max_tokens):
            (rows,) = example_rows(compute, [batch[i] for i in group], [size], failures)
            total += statistics.total(rows)
        if failures is not None:
            report_lost_step(len(batch), failures.count)
        return total


def make_statistics_release(settings: Settings) -> StatisticsRelease:
    """Return the release that the settings ask a silo for.

    Args:
        settings: the silo's own (``Settings.for_silo``).
    """
    codec, privacy = settings.codec, settings.privacy
    return StatisticsRelease(
        asked=codec.asks_silos,
        kind=codec.prior,
        clip=privacy.clip,
        noise=codec.statistics_noise,
        private=privacy.mode == "dp",
        by_client=privacy.unit == "client",
        by_server=privacy.noise_by == "server",
        prefix_scale=privacy.prefix_scale,
        plan=StepPlan.of(settings),
    )


@dataclass(frozen=True)
class Priors:
    """Makes the codec's prior of what the silos released, or of public text: post-processing, or free.

    Attributes:
        release: what a silo releases.
        rank: directions of a low-rank prior at most.
        classes: number of the task's classes; None where its target is a text.
        seed: of the groups of public text.
        reach: from a gradient to an update: how far a round of SGD goes where the gradient stays the same.
        divisors: of the sums of silos that have their own, by name; of the others it is ``release.plan.divisor``.
    """

    release: StatisticsRelease
    rank: int
    classes: int | None
    seed: int
    reach: float
    divisors: Mapping[str, float]

    def of_releases(self, params: Mapping[str, Tensor], releases: Mapping[str, Tensor]) -> Prior:
        """Return the prior of what the silos released, by name.

        Raises:
            ValueError: no release.
        """
        prior = prior_from_releases(
            self.release.statistics(params),
            torch.stack([releases[name] for name in sorted(releases)])
            if releases
            else torch.zeros(0),
            **self._noise(releases),
            rank=self.rank,
        )
        return prior if self.release.by_client else _scaled(prior, self.reach)

    def chance_of_noise(self, releases: Mapping[str, Tensor]) -> float | None:
        """Return the probability that noise alone gives what the silos released; None without noise."""
        rows = torch.stack([releases[name] for name in sorted(releases)])
        return chance_of_noise(rows, **self._noise(releases))

    def _noise(self, silos: Iterable[str]) -> dict[str, float]:
        """Of the silos' releases. Their divisors may differ, and so their noise: the root mean square is that
        of their mean."""
        own = self.release
        divisors = [
            1.0 if own.by_client else self.divisors.get(name, own.plan.divisor)
            for name in sorted(silos)  # not as they answered: the same bits each time
        ]
        return {
            "noise_multiplier": own.noise if own.private else 0.0,
            "divisor": float(np.mean(np.power(divisors, -2.0)) ** -0.5) if divisors else 1.0,
        }

    def of_mean(
        self, params: Mapping[str, Tensor], mean: Tensor, silos: int
    ) -> tuple[Prior, float | None]:
        """Return the prior of what a trusted server released, and the probability that noise alone gives it.

        Args:
            mean: over ``silos`` of their statistics [size] (unit client), with one noise for all.
        """
        noise = self.release.noise / silos
        statistics = self.release.statistics(params)
        prior = prior_from_releases(statistics, mean[None], noise_multiplier=noise)
        return prior, chance_of_noise(mean[None], noise_multiplier=noise)

    def of_public_text(
        self, tunable: Tunable, params: Mapping[str, Tensor], features: Sequence[Feature]
    ) -> Prior:
        """Return the prior of gradients of examples that no silo has: free.

        Mean gradients of at least 32 groups of examples, and of four times ``codec.rank`` where there are
        enough, clipped as in training. Tasks with classes: what a label changes. Labels are drawn at random,
        each class equally often in a group, so that the codec knows nothing of the labels that the model is
        judged by, and half the difference is taken to the gradient with each label moved on to the next
        class. The model's own answers cancel out in it. Without that, the direction that all texts
        share (the mean feature, half the energy of a head's gradient) would come first: it tells how
        often the classes occur, and hardly which text is of which.

        Raises:
            ValueError: fewer examples than classes, or gradients that are all zero.
        """
        classes = self.classes or 1
        if len(features) < classes:
            raise ValueError(
                f"Expected at least {classes} public examples for codec.prior_source=public, got "
                f"{len(features)}"
            )
        rng = generator(self.seed, "codec", "public-prior")
        kind = self.release.kind
        groups = _public_groups(len(features), classes, kind, self.rank, rng)
        layout = Layout.of(params)
        rows = []
        for group in groups:
            chosen = [features[i] for i in group]
            size = float(len(group))
            if self.classes is not None:  # the order is random already
                drawn, moved = (
                    [replace(f, target=(place + by) % classes) for place, f in enumerate(chosen)]
                    for by in (0, 1)
                )
                row = self._clipped_mean(tunable, params, drawn, size)
                rows.append((row - self._clipped_mean(tunable, params, moved, size)) / 2)
            else:
                rows.append(self._clipped_mean(tunable, params, chosen, size))
        prior = prior_from_gradients(kind, layout, torch.stack(rows), rank=self.rank)
        return _scaled(prior, self.reach)

    def _clipped_mean(
        self,
        tunable: Tunable,
        params: Mapping[str, Tensor],
        batch: Sequence[Feature],
        divisor: float,
    ) -> Tensor:
        """Sum of the gradients (unit example: clipped one by one) over ``divisor``, as the codec sees
        them: flat and scaled, [d]."""
        own = self.release
        layout, scales = Layout.of(params), gradient_scales(own.prefix_scale, params)
        point, tokens = _on_device(tunable, params), own.plan.max_tokens
        if own.by_client:
            sums = gradient_sum(tunable, point, batch, max_tokens=tokens)
        else:
            sums = clipped_gradient_sum(
                tunable, point, batch, clip_norm=own.clip, scales=scales, max_tokens=tokens
            ).sums
        named = {name: value.cpu() for name, value in zip(point, sums, strict=True)}
        return layout.flatten(named) / divisor


def make_priors(settings: Settings) -> Priors:
    """Return the maker of the prior that the settings name.

    Args:
        settings: the run's.
    """
    client, silos = settings.client, settings.privacy.silos
    return Priors(
        release=make_statistics_release(settings),
        rank=settings.codec.rank,
        classes=len(settings.task.classes) if settings.task.has_classes else None,
        seed=settings.seed,
        reach=client.learning_rate * client.local_steps,
        divisors={name: float(own.batch_size) for name, own in silos.items() if own.batch_size},
    )


def _scaled(prior: Prior, factor: float) -> Prior:
    """The prior of ``factor`` times the vector."""
    return replace(
        prior,
        mean=prior.mean * factor,
        variance=prior.variance * factor**2,
        basis_variance=prior.basis_variance * factor**2,
    )


def _public_groups(
    count: int, classes: int, kind: Kind, rank: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Numbers of the examples of each group, in random order; the size is a multiple of ``classes``."""
    wanted = _PUBLIC_GRADIENTS
    if kind == "low-rank":
        wanted = max(wanted, 4 * rank)
    size = max(1, count // wanted // classes) * classes
    number = min(count // size, wanted)
    order = np.argsort(rng.random(count), kind="stable")[: number * size]
    return list(order.reshape(number, size))


def _on_device(tunable: Tunable, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    device = tunable.backbone.device
    return {name: params[name].to(device=device, dtype=torch.float32) for name in sorted(params)}
