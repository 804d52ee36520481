"""A silo's integers with its share of discrete Gaussian noise, to be summed over the silos under masks.

The mechanism of the sum (``privacy.noise_by = "sum"``). With *unit example* each silo draws a Poisson batch, clips each example's
gradient, rounds it to a grid, sums the integers and adds a share of noise; with *unit client* its clipped update takes the place of
the sum. The server learns the sum over the silos, by :mod:`privacy.secure_sum` and a masking protocol.

Guarantee, to a server that learns the sum alone: one record moves one silo's integers by at most ``shares.sensitivity`` in L2, rounding
included (:mod:`privacy.secure_sum.contributions`), and the sum by as much; the honest shares in the sum cost no more than a Gaussian of the
noise multiplier (:mod:`privacy.secure_sum.bound`). A silo's batch is its own secret, so its examples are amplified at its own rate.
Without the protocol's assumptions one's own share protects alone; :func:`with_shares` gives that event.

One step a round with unit example: see ``SEVERAL_STEPS`` in :mod:`fedllm.settings.checks.secure_sum`.

What the guarantee takes for granted, as that of the existing mechanisms: an example's gradient, as it is in memory, is a function of
that example, the weights and public values. From there on all is exact: integers are added without rounding, and noise is drawn
from the discrete Gaussian itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent
from torch import Tensor

from fedllm.settings.privacy import ClippingSettings, PrivacySettings, SecureSettings
from fedllm.training.adaptive_clip import SumNoise
from fedllm.training.encoding import Encoding
from fedllm.training.gradients import gradient_scales
from fedllm.training.noise import Noise, RoundCost
from fedllm.training.steps import (
    Descent,
    LocalResult,
    LocalWork,
    StepPlan,
    Tally,
    check_noise,
    plain_update,
    poisson_batch,
    split_like,
)
from fedllm.training.sum_share.integers import example_integers, update_integers
from privacy.events.constructors import discrete_gaussian_sum, gaussian, poisson_sampled
from privacy.events.kinds import DiscreteGaussianSumDpEvent
from privacy.events.multiset import multiset
from privacy.mechanisms.adaptive_clipping import share_below, split
from privacy.randomness import RandomSource
from privacy.secure_sum import ring
from privacy.secure_sum.contributions import LARGEST_NORM, MOST_RECORDS, count_weight
from privacy.secure_sum.ring import Ring
from privacy.secure_sum.shares import SharePlan, draw_share, plan_shares

SUM = "sum"
"""Name of the only tensor in a silo's message."""
_TENSORS = {32: np.int32, 64: np.int64}
_RINGS = {np.dtype(np.int32): np.uint32, np.dtype(np.int64): np.uint64}


def tensor_of(vector: Ring) -> Tensor:
    """Return a ring vector as a tensor for a message: int32 or int64, the same bits."""
    bits = 8 * vector.dtype.itemsize
    return torch.from_numpy(np.ascontiguousarray(vector).view(_TENSORS[bits]))


def ring_of(tensor: Tensor) -> Ring:
    """Return the inverse of :func:`tensor_of`; ValueError for another type."""
    values = tensor.detach().cpu().numpy()
    if values.dtype not in _RINGS:
        raise ValueError(f"Expected a tensor of int32 or int64, got {tensor.dtype}")
    found: Ring = np.ascontiguousarray(values).view(_RINGS[values.dtype])
    return found


@dataclass(frozen=True)
class SumMean:
    """The mean over the silos of a round, read from their sum.

    Attributes:
        update: in the shapes of the trained tensors, float32.
        below: adaptive clipping: noisy share of norms at most the clipping norm; else None.
    """

    update: dict[str, Tensor]
    below: float | None


@dataclass(frozen=True)
class SumShare:
    """The mechanism of one silo's share of a sum.

    Attributes:
        plan: of the local steps.
        unit: "example" or "client".
        sampling_rate: probability of each example to be in a step's batch.
        clip: clipping norm of an example's gradient, or of the update.
        noise_multiplier: of the sum, common to all silos; 0 for a silo that never trains.
        count_share: share of the cost that adaptive clipping's count has; None for a fixed norm.
        prefix_scale: public factor of the prefix before clipping.
        dropouts, colluding, bits: of ``[secure]``.
        silos: number of silos in the run; 0 where it is not known yet.
        dimension: numbers of an update (with a codec: of a code); 0 where it is not known yet.
    """

    plan: StepPlan
    unit: str
    sampling_rate: float
    clip: float
    noise_multiplier: float
    count_share: float | None
    prefix_scale: float
    dropouts: int
    colluding: int
    bits: int
    silos: int = 0
    dimension: int = 0

    private = True

    @classmethod
    def of(
        cls,
        plan: StepPlan,
        privacy: PrivacySettings,
        secure: SecureSettings,
        clipping: ClippingSettings,
        sampling_rate: float,
        noise_multiplier: float,
    ) -> SumShare:
        """Return the mechanism of these settings."""
        return cls(
            plan=plan,
            unit=privacy.unit,
            sampling_rate=sampling_rate,
            clip=privacy.clip,
            noise_multiplier=noise_multiplier,
            count_share=clipping.count_share if clipping.form == "adaptive" else None,
            prefix_scale=privacy.prefix_scale,
            dropouts=secure.drop_outs,
            colluding=secure.colluding,
            bits=secure.bits,
        )

    def among(self, silos: int, dimension: int) -> SumShare:
        """Return the mechanism of a run with so many silos and so many numbers in an update.

        Raises:
            ValueError: too few silos for those that may be missing or collude, or no room in the ring.
        """
        check_silos(silos, self.dropouts, self.colluding)
        found = replace(self, silos=silos, dimension=dimension)
        if found.noise_multiplier:
            found.shares  # noqa: B018 (raises where there is no room)
        return found

    @property
    def adaptive(self) -> bool:
        """True if the clipping norm comes with each round's task."""
        return self.count_share is not None

    def at_clip(self, clip: float | None) -> SumShare:
        """Return the mechanism of a round whose task brings ``clip``; see :meth:`SumNoise.at_clip`."""
        count = None
        if self.count_share is not None:
            count = split(self.noise_multiplier or 1.0, self.count_share).count
        noise = SumNoise(Noise(self.noise_multiplier), count)
        return replace(self, clip=noise.at_clip(self.clip, clip))

    def at_silo(self) -> SumShare:
        """Return the silo's part: all of it, the silo adds its share."""
        return self

    # -- the numbers that all silos agree on -------------------------------------------------------

    @cached_property
    def shares(self) -> SharePlan:
        """Grid and share of the noise, in units of the clipping norm.

        Raises:
            ValueError: the silos are not known yet, or the ring has no room.
        """
        if not self.silos or not self.dimension:
            raise ValueError(
                "Expected the number of silos and of numbers in an update (among) before a share of noise is made, got "
                f"silos={self.silos}, dimension={self.dimension}"
            )
        norm = LARGEST_NORM
        if self.count_share is not None:
            norm *= math.sqrt(1 + count_weight(self.count_share) ** 2)
        return plan_shares(
            self.noise_multiplier,
            norm,
            self.entries,
            self.silos,
            dropouts=self.dropouts,
            colluding=self.colluding,
            bits=self.bits,
        )

    @property
    def entries(self) -> int:
        """Integers in a silo's message: one more than the dimension where norms are counted."""
        return self.dimension + (self.count_share is not None)

    @cached_property
    def _count_steps(self) -> int:
        """Steps that a record adds to or takes from the count's entry, h of :func:`count_weight`, rounded down."""
        if self.count_share is None:
            return 0
        steps = math.floor(math.ldexp(count_weight(self.count_share), -self.shares.exponent))
        if steps < 1:
            raise ValueError(
                f"Expected a larger clipping.count_share (the count is below one step of the grid), got {self.count_share}"
            )
        return steps

    # -- what a round costs ----------------------------------------------------------------------

    def events(self, server_round: int) -> Counter[DpEvent]:
        """Return the event of one round against a server that learns the sum and controls ``colluding`` silos.

        Raises:
            ValueError: the silos are not known yet, see :meth:`calibrated`.
        """
        plan = self.shares
        return self._sampled(discrete_gaussian_sum(plan.sigma, plan.honest, plan.sensitivity))

    def calibrated(self) -> Counter[DpEvent]:
        """Return the Gaussian event of a round that the noise is calibrated for; :meth:`events` costs at most as much."""
        return self._sampled(gaussian(self.noise_multiplier))

    def _sampled(self, event: DpEvent) -> Counter[DpEvent]:
        if self.unit == "example" and self.sampling_rate < 1:
            event = poisson_sampled(self.sampling_rate, [event])
        return multiset({event: 1})

    def cost(self) -> RoundCost:
        """Return the cost of one mechanism a round."""
        return RoundCost(self.sampling_rate if self.unit == "example" else 1.0, 1)

    def release_noise(self) -> None:
        """None: the server sees no single message without its mask."""
        return

    def noise_std(self, params: Mapping[str, Tensor]) -> dict[str, float] | None:
        """None: the server reads no entries of a single message; see :meth:`mean_std`."""
        return None

    def mean_std(self, params: Mapping[str, Tensor], answered: int) -> dict[str, float] | None:
        """Return the standard deviation of the noise in each entry of the mean of ``answered`` silos, by tensor.

        None where the update has more numbers than what is summed (a codec).
        """
        if sum(value.numel() for value in params.values()) != self.dimension:
            return None
        plan = self.shares
        one = math.ldexp(plan.sigma, plan.exponent) * self.clip / math.sqrt(answered)
        one *= abs(self._factor)
        scales = gradient_scales(self.prefix_scale, params)
        return {name: one / scales[name] for name in params}

    @property
    def _factor(self) -> float:
        """What a silo's sum is multiplied by to be its update."""
        if self.unit == "client":
            return 1.0
        return -self.plan.learning_rate / self.plan.divisor

    # -- the release -----------------------------------------------------------------------------

    def train(self, work: LocalWork) -> LocalResult:
        """Train one round; the result is the integers with the silo's share, modulo 2^bits, **not masked**.

        It must leave the silo under a mask only: alone it has the event of one share. The message is ``{"sum": tensor_of(ring)}`` of
        ``entries`` integers.

        Raises:
            ValueError: no noise, silos not known, another number of trained numbers than agreed on, or too many records.
        """
        check_noise("dp", "client", self.noise_multiplier)
        plan = self.shares
        if len(work.features) > MOST_RECORDS:
            raise ValueError(f"Expected at most 2^28 examples, got {len(work.features)}")
        tally = Tally()
        if self.unit == "example":
            integers, count = self._example(work, tally, plan)
        else:
            integers, count = self._client(work, tally, plan)
        message = self.message(integers, count, work.streams("noise", self.plan.count))
        return tally.result({SUM: tensor_of(message)})

    def message(self, integers: Tensor, count: int, rng: RandomSource) -> Ring:
        """Return clipped records' integers, and their count, with the silo's share of the noise, modulo 2^bits.

        Guarantee: in a sum over the silos its event is :meth:`events`, if one record moves the integers as
        :mod:`privacy.secure_sum.contributions` says and the doubled count by 1.

        Args:
            integers: int64 [dimension].
            count: doubled centred count of norms at most the clipping norm; not used for a fixed norm.
            rng: the silo's own source, used for nothing else.

        Raises:
            ValueError: another number of integers than the silos agreed on.
        """
        plan = self.shares
        if integers.shape != (self.dimension,):
            raise ValueError(
                f"Expected {self.dimension} numbers in an update, as the silos agreed on, got {integers.numel()}"
            )
        vector = integers.numpy()
        if self.count_share is not None:
            vector = np.append(vector, np.int64(count * self._count_steps))
        noise = draw_share(self.entries, plan.sigma, rng)
        return ring.encode(vector, noise, plan.largest, plan.bits)

    def _example(self, work: LocalWork, tally: Tally, plan: SharePlan) -> tuple[Tensor, int]:
        batch = poisson_batch(work.features, self.sampling_rate, work.streams("sample", 0))
        return example_integers(
            *(work, Descent(work, self.plan), batch, tally),
            clip=self.clip,
            prefix_scale=self.prefix_scale,
            exponent=plan.exponent,
            max_tokens=self.plan.max_tokens,
        )

    def _client(self, work: LocalWork, tally: Tally, plan: SharePlan) -> tuple[Tensor, int]:
        update = plain_update(work, self.plan, self.sampling_rate, tally, tally.failures)
        return update_integers(work, update, tally, clip=self.clip, exponent=plan.exponent)

    def read(
        self,
        total: Ring,
        answered: int,
        params: Mapping[str, Tensor],
        encoding: Encoding | None = None,
    ) -> SumMean:
        """Return the mean update of a round from the sum of the silos' messages: post-processing.

        Args:
            total: the sum modulo 2^bits, [entries].
            answered: number of silos in it, >= 1.
            params: trained tensors, whose shapes the update has.
            encoding: where the codes were summed; None without a codec.

        Raises:
            ValueError: another length or type, or nobody answered.
        """
        if total.shape != (self.entries,) or answered < 1:
            raise ValueError(
                f"Expected a sum of {self.entries} integers from at least one silo, got shape {total.shape} from {answered}"
            )
        plan = self.shares
        steps = ring.decode(total, plan.bits)
        real = np.ldexp(steps[: self.dimension].astype(np.float64), plan.exponent)
        flat = torch.from_numpy(real * (self.clip * self._factor / answered)).float()
        below = None
        if self.count_share is not None:
            records = answered * (self.plan.divisor if self.unit == "example" else 1.0)
            below = share_below(float(steps[-1]) / (2 * self._count_steps), records)
        if encoding is not None:
            return SumMean(encoding.unflatten(encoding.codec.reconstruct(flat)), below)
        scales = gradient_scales(self.prefix_scale, params)
        parts = zip(sorted(params), split_like(flat, params), strict=True)
        return SumMean({name: value / scales[name] for name, value in parts}, below)


def check_silos(silos: int, dropouts: int, colluding: int) -> None:
    """Check that a sum over so many silos can be what the settings ask for.

    Raises:
        ValueError: a silo alone has no sum, or too few are honest and there.
    """
    if silos < 2 or silos - colluding < 2:
        raise ValueError(
            "Expected at least two silos that do not collude (secure.colluding) with privacy.noise_by=sum, got "
            f"{silos} silos with secure.colluding={colluding}"
        )
    if not 2 * dropouts < silos - colluding:
        raise ValueError(
            "Expected 2 secure.drop_outs < silos - secure.colluding, got "
            f"secure.drop_outs={dropouts}, {silos} silos, secure.colluding={colluding}"
        )


def with_shares(event: DpEvent, shares: int) -> DpEvent:
    """Return an event of a sum as it is for somebody to whom so many of its shares are unknown; other events as they are."""
    if isinstance(event, DiscreteGaussianSumDpEvent):
        return discrete_gaussian_sum(event.sigma, shares, event.sensitivity)
    if isinstance(event, dp.PoissonSampledDpEvent):
        return dp.PoissonSampledDpEvent(
            event.sampling_probability, with_shares(event.event, shares)
        )
    return event
