"""Local DP-SGD: in each step a noisy sum of clipped gradients of examples moves the weights.

Guarantee (unit ``example``): each local step releases a Poisson-subsampled Gaussian mechanism with the
silo's sampling rate and noise multiplier; the returned update is a function of these releases and of
public values, so it may be sent to anybody. The caller must have recorded :meth:`DpSgd.events` before.
With a codec the message is its code instead; see :mod:`fedllm.training.encoding`.

With ``client.max_batch`` the sample is truncated (:mod:`fedllm.training.batch.fixed_shape`), and so is its event.
With adversarial weight perturbation the gradients are taken at other points; which forms keep this
guarantee is in :mod:`fedllm.training.perturbation`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from dp_accounting.dp_event import DpEvent
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.settings.checks.fixed_shape import records_of
from fedllm.settings.experiment import Settings
from fedllm.training.adaptive_clip import SumNoise
from fedllm.training.batch.contained import Failures
from fedllm.training.batch.fixed_shape import FixedShape
from fedllm.training.encoding import Encoding, encode_released_update
from fedllm.training.gradients import clipped_gradient_sum, gradient_scales
from fedllm.training.noise import Noise, RoundCost, together
from fedllm.training.perturbation import UNBOUNDED_ASCENT, is_perturbed
from fedllm.training.steps import (
    Descent,
    LocalResult,
    LocalWork,
    StepPlan,
    Streams,
    Tally,
    check_noise,
    split_like,
)
from fedllm.training.tunable import Tunable
from privacy.events.constructors import no_guarantee, poisson_sampled, truncated_sgd
from privacy.events.multiset import multiset
from privacy.mechanisms.adaptive_clipping import centred_count, share_below
from privacy.mechanisms.sampling import poisson_sample
from privacy.randomness import RandomSource


@dataclass(frozen=True)
class Truncation:
    """A Poisson sample of which at most ``most`` records are kept.

    Attributes:
        records: number of the silo's examples, which is public.
    """

    records: int
    most: int


@dataclass(frozen=True)
class DpSgd:
    """The mechanism of local DP-SGD at one silo.

    Attributes:
        plan: of the local steps.
        sampling_rate: probability of each example to be in a step's batch.
        clip: clipping norm of an example's gradient.
        noise_multiplier: of one step's releases together; 0 for a silo that never trains.
        noise: of one step's sum, and of its count where clipping is adaptive.
        max_batch: most examples of a step, for steps of a fixed shape; None for no bound.
        truncation: what that does to the event; None where every drawn example is in the step.
        prefix_scale: public factor of the prefix before clipping.
        keeps_all: whether the server reads an update with all its coordinates.
    """

    plan: StepPlan
    sampling_rate: float
    clip: float
    noise_multiplier: float
    noise: SumNoise
    max_batch: int | None
    truncation: Truncation | None
    prefix_scale: float
    keeps_all: bool

    private = True

    @classmethod
    def of(cls, settings: Settings, sampling_rate: float, noise_multiplier: float) -> DpSgd:
        """The mechanism of these settings."""
        most = settings.client.max_batch
        truncation = None
        if most is not None and sampling_rate < 1:  # at rate 1 the sample never exceeds max_batch
            truncation = Truncation(records_of(settings, sampling_rate), most)
        return cls(
            plan=StepPlan.of(settings),
            sampling_rate=sampling_rate,
            clip=settings.privacy.clip,
            noise_multiplier=noise_multiplier,
            noise=SumNoise.of(settings, noise_multiplier),
            max_batch=most,
            truncation=truncation,
            prefix_scale=settings.privacy.prefix_scale,
            keeps_all=settings.codec.keeps_all,
        )

    @property
    def adaptive(self) -> bool:
        """True if the clipping norm comes with each round's task."""
        return self.noise.count is not None

    def at_clip(self, clip: float | None) -> DpSgd:
        """The mechanism of a round whose task brings ``clip``; see :meth:`SumNoise.at_clip`."""
        if clip is None and self.noise.count is None:
            return self
        return replace(self, clip=self.noise.at_clip(self.clip, clip))

    def at_silo(self) -> DpSgd:
        """The silo adds all of the noise."""
        return self

    # -- what a round costs ----------------------------------------------------------------------

    def events(self, server_round: int) -> Counter[DpEvent]:
        """The events of the local steps of one round.

        In the rounds of the perturbation ``awp.form = "batch"`` has no guarantee, whatever noise the sums carry.
        """
        found = Counter(self._noisy_events)
        if self.plan.awp.form == "batch" and is_perturbed(self.plan.awp, server_round):
            found[no_guarantee(UNBOUNDED_ASCENT)] = self.plan.count
        return found

    @cached_property
    def _noisy_events(self) -> Counter[DpEvent]:
        """Those of the noisy sums, which are the same in each round: built once."""
        return multiset({self._step_event(): self.plan.count})

    def _step_event(self) -> DpEvent:
        if self.truncation is not None:
            size, most = self.truncation.records, self.truncation.most
            return truncated_sgd(size, self.sampling_rate, most, self.noise.vector.multiplier)
        events = self.noise.events()
        if self.sampling_rate < 1:
            return poisson_sampled(self.sampling_rate, events)
        return together(events)

    def cost(self) -> RoundCost:
        """A sampled mechanism a step."""
        truncated = None
        if self.truncation is not None:
            truncated = (self.truncation.records, self.truncation.most)
        return RoundCost(self.sampling_rate, self.plan.count, truncated=truncated)

    def release_noise(self) -> Noise:
        """The noise of one clipped sum."""
        return self.noise.vector

    @cached_property
    def _step_std(self) -> float:
        """Standard deviation of a step's noise, per divisor."""
        return self.noise.vector.std * self.clip / self.plan.divisor

    def noise_std(self, params: Mapping[str, Tensor]) -> dict[str, float] | None:
        """Standard deviation of the noise in each entry of the update as the server reads it, by tensor.

        A function of the settings, the multiplier and the parameters' shapes alone: server and silo compute the same.
        None where it is not known (local Adam, a codec that leaves out coordinates) or not finite.
        """
        if not self.keeps_all or self.plan.optimizer != "sgd":
            return None
        one_step = self._step_std
        if not math.isfinite(one_step):
            return None
        scales = gradient_scales(self.prefix_scale, params)
        factor = self.plan.learning_rate * self.plan.count**0.5
        return {name: one_step * factor / scales[name] for name in params}

    # -- the release -----------------------------------------------------------------------------

    def train(self, work: LocalWork) -> LocalResult:
        """Take the round's local steps; what is returned may leave the silo.

        The divisor of each gradient sum is ``client.batch_size``, whatever the Poisson batch drawn; an
        empty batch still releases its noise.

        Raises:
            ValueError: a noise multiplier that is not finite and > 0, or a perturbation that does not fit
                the trained tensors.
        """
        check_noise("dp", "client", self.noise_multiplier)
        tally, descent = Tally(), Descent(work, self.plan)
        release = _StepRelease.of(self, work, descent, tally.failures)
        codes: list[Tensor] = []
        below = 0.0
        for step in range(self.plan.count):
            batch, examples = release.sample(work.streams("sample", step))
            point: Mapping[str, Tensor] = descent.weights
            if descent.perturbation is not None:
                point = descent.point(batch, tally.failures)
            found = release(point, batch, work.streams("noise", step), examples)
            tally.add(found.counts, found.norms)
            if self.noise.count is not None:
                count = centred_count(found.norms, self.clip)
                below += self.noise.add_to_count(count, work.streams("count-noise", step))
            codes += [] if found.code is None else [found.code.cpu()]
            descent.move(found.sums)
        update = descent.update()
        noise_std = self.noise_std(update)
        share = None
        if self.noise.count is not None:
            share = share_below(below, self.plan.divisor * self.plan.count)
        if work.encoding is not None:
            update = self._message(update, codes, work.encoding, work.streams)
        return tally.result(update, noise_std, share)

    def _message(
        self,
        update: dict[str, Tensor],
        codes: Sequence[Tensor],
        encoding: Encoding,
        streams: Streams,
    ) -> dict[str, Tensor]:
        """The code of an update: post-processing."""
        rounding = streams("round", self.plan.count)
        if not codes:
            return dict(encode_released_update(update, encoding, rounding=rounding).tensors)
        # SGD: the weights moved by the reconstruction of this sum.
        total = torch.stack(list(codes)).double().sum(0)
        code = (total * (-self.plan.learning_rate / self.plan.divisor)).float()
        return dict(encoding.codec.encode_code(code, rounding).tensors)


@dataclass(frozen=True)
class _Released:
    """A batch's clipped and noisy gradient sum by name, its code (noise in the code; else None),
    numbers of examples, clipped and not finite, and norms before clipping."""

    sums: dict[str, Tensor]
    code: Tensor | None
    counts: tuple[int, int, int]
    norms: Tensor


@dataclass(frozen=True)
class _StepRelease:
    """One release of a round's step: draws a batch, clips, sums, adds noise."""

    mechanism: DpSgd
    noise: Noise
    tunable: Tunable
    features: Sequence[Feature]
    max_tokens: int
    fixed: FixedShape | None
    encoding: Encoding | None
    descent: Descent
    failures: Failures

    @classmethod
    def of(
        cls, mechanism: DpSgd, work: LocalWork, descent: Descent, failures: Failures
    ) -> _StepRelease:
        tunable, tokens, fixed = work.tunable, mechanism.plan.max_tokens, None
        if mechanism.max_batch is not None:
            fixed = FixedShape.of(tunable, mechanism.max_batch, tokens)
            tunable, tokens = fixed.tunable, fixed.max_tokens
        noise = mechanism.noise.vector
        encoding = work.encoding if work.encoding is not None and work.encoding.in_code else None
        return cls(
            *(mechanism, noise, tunable, work.features, tokens, fixed, encoding, descent, failures)
        )

    def sample(self, rng: RandomSource) -> tuple[list[Feature], int | None]:
        """A step's batch, and how many of its first rows are examples where others fill a fixed shape."""
        rate = self.mechanism.sampling_rate
        if self.fixed is None:
            drawn = poisson_sample(len(self.features), rate, rng)
            return [self.features[i] for i in drawn], None
        return self.fixed.draw(self.features, rate, rng)

    def __call__(
        self,
        point: Mapping[str, Tensor],
        batch: Sequence[Feature],
        rng: RandomSource,
        examples: int | None = None,
    ) -> _Released:
        """One Gaussian mechanism on a batch: gradients at ``point``, clipped, summed, noised.

        ``rng`` must not have been used for another release; ``examples`` is as for :func:`clipped_gradient_sum`.
        """
        clip, scales = self.mechanism.clip, gradient_scales(self.mechanism.prefix_scale, point)
        total = clipped_gradient_sum(
            self.tunable,
            point,
            batch,
            clip_norm=clip,
            scales=scales,
            max_tokens=self.max_tokens,
            examples=examples,
            codec=None if self.encoding is None else self.encoding.codec,
            perturbation=self.descent.own,
            failures=self.failures,
        )
        code = None
        if self.encoding is None:
            flat = torch.cat([value.reshape(-1) for value in total.sums])
            noisy = split_like(self.noise.add(flat, clip, rng), point)
            sums = {name: s / scales[name] for s, name in zip(noisy, sorted(point), strict=True)}
        else:
            code = self.noise.add(total.sums[0], clip, rng)
            sums = self.encoding.unflatten(self.encoding.codec.reconstruct(code))
        counts = (total.count, total.clipped, total.nonfinite)
        return _Released(sums, code, counts, total.norms)
