"""PLD accountant (privacy loss distributions): valid, tight, and the default for every stated epsilon."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import dp_accounting
import numpy as np
from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent
from dp_accounting.pld import privacy_loss_distribution as dp_pld

from privacy.accountants.base import Accountant
from privacy.accountants.losses.distribution import LossDistribution, compose, no_guarantee
from privacy.accountants.losses.gaussian import (
    LARGEST_DISCRETE_SIGMA,
    discrete_gaussian_losses,
    gaussian_losses,
    largest_loss,
)
from privacy.accountants.losses.mixture import Mixture, mixture_losses
from privacy.accountants.losses.scalar import scalar_losses, scalar_spread
from privacy.accountants.losses.truncated import largest_kept, truncated_losses
from privacy.events.kinds import (
    DiscreteGaussianDpEvent,
    PureDpEvent,
    ScalarNoiseDpEvent,
    noise_of,
)
from privacy.guarantee import Relation
from privacy.mechanisms.scalar_noise import LaplaceNoise, ScalarNoise

_LARGEST_INTERVAL = 1e-4
_SMALLEST_INTERVAL = 1e-6
# Numbers of losses above which the interval grows instead.
_LARGEST_BASE = 1e6
_LARGEST_COMPOSED = 4e6
_LARGEST_PURE_LOSS = 100.0  # so little Laplace noise is counted as none
_LARGEST_RESULT = 2e7  # where that estimate was wrong
_Pair = tuple[LossDistribution, ...]  # one distribution if symmetric, else (remove, add)


class PldAccountant(Accountant):
    """Composes discretised privacy loss distributions, in both directions of the relation.

    The pairs of (sampled) Gaussians, and the proof for replace-one, are in `losses.gaussian`. Zero-out has the
    pairs of add-or-remove-one, for every event here (`privacy.guarantee`: the null record) but truncated
    Poisson sampling: there zero-out has the pair of `losses.truncated`, and the other relations, in which a removed
    or replaced record leaves its place to another one, have dp_accounting's bounds. Randomised
    response releases an answer for every record, so that none of them contributes nothing. Under
    replace-one a Laplace, discrete Laplace or discrete Gaussian mechanism has twice its sensitivity, and
    one of pure privacy twice its epsilon.
    Laplace noise is sampled under zero-out and add-or-remove-one only.
    """

    name = "pld"
    is_bound = True
    trust = "a valid and tight upper bound; the headline"

    def _refusal(self, event: DpEvent) -> str | None:
        replace = self.relation.doubles
        if isinstance(event, dp.GaussianDpEvent | dp.TruncatedSubsampledGaussianDpEvent):
            return None
        if isinstance(event, dp.LaplaceDpEvent):
            return None
        if isinstance(event, dp.DiscreteLaplaceDpEvent):
            return None
        if isinstance(event, DiscreteGaussianDpEvent):
            if event.sigma <= LARGEST_DISCRETE_SIGMA:
                return None
            return f"its loss is computed for sigma <= {LARGEST_DISCRETE_SIGMA:g} only"
        if isinstance(event, ScalarNoiseDpEvent | PureDpEvent):
            return None
        if isinstance(event, dp.RandomizedResponseDpEvent):
            return None if replace else "randomised response is stated for replace-one only"
        if isinstance(event, dp.MixtureOfGaussiansDpEvent):
            if replace:
                return "a mixture of Gaussians is stated for zero-out and add-or-remove-one only"
            try:
                _mixture(event)
            except ValueError as error:
                return str(error)
            return None
        if isinstance(event, dp.PoissonSampledDpEvent):
            if isinstance(event.event, dp.GaussianDpEvent):
                return None
            if isinstance(event.event, dp.LaplaceDpEvent | ScalarNoiseDpEvent):
                reason = (
                    "amplification of other than Gaussian noise is stated for zero-out and "
                    "add-or-remove-one only"
                )
                return reason if replace else None
            return "Poisson sampling is represented for one number or one Gaussian mechanism only"
        return "dp_accounting has no privacy loss distribution of this event"

    def distributions(self, events: Counter[DpEvent]) -> _Pair:
        """Return the composed loss distributions of the directions of the relation.

        Args:
          events: A supported, private, non-empty multiset.
        """
        return _composed(frozenset(events.items()), self.relation)

    def composed(self, events: Mapping[DpEvent, int]) -> _Pair:
        """Return what `distributions` does, of private events in any form.

        Raises:
          UnsupportedEvent: An event cannot be represented.
        """
        return self.distributions(self._prepared(events))

    def _epsilon(self, events: Counter[DpEvent], delta: float) -> float:
        return _epsilon(frozenset(events.items()), self.relation, delta)

    def _delta(self, events: Counter[DpEvent], epsilon: float) -> float:
        return max(float(d.delta(epsilon)[0]) for d in self.distributions(events))


_Items = frozenset[tuple[DpEvent, int]]


@lru_cache(maxsize=65536)
def _epsilon(items: _Items, relation: Relation, delta: float) -> float:
    return max(d.epsilon(delta) for d in _composed(items, relation))


@lru_cache(maxsize=8)
def _composed(items: _Items, relation: Relation) -> _Pair:
    """Compose events; the Gaussians among them are combined exactly into one Gaussian."""
    counts: dict[DpEvent, int] = {}
    precision = 0.0
    for event, count in items:
        if isinstance(event, dp.GaussianDpEvent):
            # k Gaussian mechanisms are one of multiplier (sum 1/z^2)^(-1/2), exactly
            # (Dong, Roth and Su 2022, section 3): no grid and no FFT error for them.
            precision += count / event.noise_multiplier**2
        else:
            counts[event] = count
    if precision > 0:
        counts[dp.GaussianDpEvent(precision**-0.5)] = 1
    interval = _interval(counts, relation)
    # A coarser grid rounds losses up further: still a bound, only looser.
    while (found := _compose_at(counts, relation, interval)) is None:
        interval *= 4
    return found


def _compose_at(counts: dict[DpEvent, int], relation: Relation, interval: float) -> _Pair | None:
    """Compose at one interval; None if the result would be too large for memory."""
    order = sorted(counts.items(), key=repr)  # the same result whatever the order of the set
    bases = [(_base(event, relation, interval), count) for event, count in order]
    for base, _ in bases:
        # One release without privacy makes the whole composition so; the FFT needs finite mass.
        if base[0].infinity >= 1:
            return base
    pair = []
    for d in range(max(len(base) for base, _ in bases)):
        parts = [(base[min(d, len(base) - 1)], count) for base, count in bases]
        if (found := compose(parts, _LARGEST_RESULT)) is None:
            return None
        pair.append(found)
    return tuple(pair)


def _scalar(event: DpEvent, replace: bool) -> tuple[ScalarNoise, float, float] | None:
    """Return (noise, sampling rate, shift) of an event that is one number with noise, sampled or not."""
    rate, inner = 1.0, event
    if isinstance(event, dp.PoissonSampledDpEvent):
        rate, inner = event.sampling_probability, event.event
    if not isinstance(inner, ScalarNoiseDpEvent):
        return None
    return noise_of(inner), rate, 2.0 if replace else 1.0


def _laplace(event: DpEvent, replace: bool) -> tuple[ScalarNoise, float, float] | None:
    """Return the same of dp_accounting's own Laplace event; None if it is so large as to be nothing."""
    rate, inner = 1.0, event
    if isinstance(event, dp.PoissonSampledDpEvent):
        rate, inner = event.sampling_probability, event.event
    if not isinstance(inner, dp.LaplaceDpEvent) or _pure_loss(event) > _LARGEST_PURE_LOSS:
        return None
    return LaplaceNoise(inner.noise_multiplier), rate, 2.0 if replace else 1.0


def _spread(event: DpEvent, replace: bool) -> float | None:
    """Return the approximate standard deviation of the loss, where it may be small."""
    factor = 2.0 if replace else 1.0
    if (scalar := _scalar(event, replace) or _laplace(event, replace)) is not None:
        return scalar_spread(*scalar)[0]
    if isinstance(event, dp.TruncatedSubsampledGaussianDpEvent):
        return _spread(_untruncated(event), replace)
    if isinstance(event, dp.PoissonSampledDpEvent):
        noise = event.event.noise_multiplier
        growth = math.expm1(min(noise**-2, 100.0))
        return float(event.sampling_probability * math.sqrt(growth)) * factor
    if isinstance(event, dp.GaussianDpEvent):
        return factor / float(event.noise_multiplier)
    if isinstance(event, DiscreteGaussianDpEvent):
        return factor * event.sensitivity / event.sigma
    if isinstance(event, PureDpEvent):
        return factor * float(event.epsilon)
    if isinstance(event, dp.MixtureOfGaussiansDpEvent):
        return _mixture(event).spread()
    return None


def _reach(event: DpEvent, replace: bool) -> float | None:
    """Return the largest finite loss of an event that `_spread` knows."""
    if (scalar := _scalar(event, replace) or _laplace(event, replace)) is not None:
        return scalar_spread(*scalar)[1]
    if isinstance(event, dp.TruncatedSubsampledGaussianDpEvent):
        size, most = event.dataset_size, event.truncated_batch_size
        kept = largest_kept(size, event.sampling_probability, most)
        return largest_loss(event.noise_multiplier, kept, replace) if kept else 0.0
    if isinstance(event, dp.PoissonSampledDpEvent):
        return largest_loss(event.event.noise_multiplier, event.sampling_probability, replace)
    if isinstance(event, dp.GaussianDpEvent):
        return largest_loss(event.noise_multiplier, 1.0, replace)
    if isinstance(event, DiscreteGaussianDpEvent):
        shift = event.sensitivity * (2 if replace else 1)
        return shift / event.sigma * (shift / event.sigma / 2 + 12 + 2 / event.sigma)
    if isinstance(event, PureDpEvent):
        return min(float(event.epsilon), _LARGEST_PURE_LOSS) * (2 if replace else 1)
    if isinstance(event, dp.MixtureOfGaussiansDpEvent):
        return _mixture(event).largest_loss()
    return None


def _mixture(event: dp.MixtureOfGaussiansDpEvent) -> Mixture:
    return Mixture(event.standard_deviation, event.sensitivities, event.sampling_probs)


def _untruncated(event: dp.TruncatedSubsampledGaussianDpEvent) -> DpEvent:
    """Return the same with no bound on the sample."""
    rate = event.sampling_probability
    return dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(event.noise_multiplier))


def _pure_loss(event: DpEvent) -> float:
    """Return the largest loss of a mechanism of pure privacy, without replacement; 0 for others."""
    if isinstance(event, dp.PoissonSampledDpEvent):
        event = event.event
    if isinstance(event, dp.LaplaceDpEvent):
        return 1 / float(event.noise_multiplier)
    if isinstance(event, dp.DiscreteLaplaceDpEvent):
        return float(event.noise_parameter * event.sensitivity)
    return 0.0


def _interval(counts: dict[DpEvent, int], relation: Relation) -> float:
    """Choose the interval: a tenth of the smallest spread, within what memory allows.

    Any interval gives a valid bound; one that is coarse against an event's own losses gives a loose
    one, and ever looser with the number of compositions.
    """
    replace = relation.doubles
    smallest, single, composed = _LARGEST_INTERVAL, 0.0, 0.0
    for event, count in counts.items():
        spread, reach = _spread(event, replace), _reach(event, replace)
        if spread is None or reach is None:
            continue
        if 0 < spread / 10 < smallest:
            smallest = max(_SMALLEST_INTERVAL, 10.0 ** math.floor(math.log10(spread / 10)))
        single = max(single, reach)
        # The composed losses lie within the sum of the ranges or, with all but negligible mass,
        # within 16 standard deviations of their mean, whichever is narrower.
        composed += min(count * reach, reach + 16 * spread * math.sqrt(count))
    while single / smallest > _LARGEST_BASE or composed / smallest > _LARGEST_COMPOSED:
        smallest *= 2
    return smallest


@lru_cache(maxsize=64)
def _base(event: DpEvent, relation: Relation, interval: float) -> _Pair:
    """Return one event's loss distributions: ours for Gaussians, otherwise dp_accounting's."""
    replace = relation.doubles
    if (scalar := _scalar(event, replace)) is not None:
        return scalar_losses(*scalar, interval)
    truncated = isinstance(event, dp.TruncatedSubsampledGaussianDpEvent)
    if truncated and relation is Relation.ZERO_OUT:
        return truncated_losses(
            event.dataset_size,
            event.sampling_probability,
            event.truncated_batch_size,
            event.noise_multiplier,
            interval,
        )
    if isinstance(event, dp.GaussianDpEvent):
        return gaussian_losses(event.noise_multiplier, 1.0, replace, interval)
    if isinstance(event, DiscreteGaussianDpEvent):
        shift = event.sensitivity * (2 if replace else 1)
        return (discrete_gaussian_losses(event.sigma, shift, interval),)
    if isinstance(event, PureDpEvent):
        return (pure_losses(event.epsilon * (2 if replace else 1), interval),)
    if isinstance(event, dp.PoissonSampledDpEvent) and isinstance(event.event, dp.GaussianDpEvent):
        noise, rate = event.event.noise_multiplier, event.sampling_probability
        return gaussian_losses(noise, rate, replace, interval)
    if _pure_loss(event) > _LARGEST_PURE_LOSS:
        return (no_guarantee(interval),)
    try:
        with np.errstate(all="ignore"):
            if isinstance(event, dp.MixtureOfGaussiansDpEvent):
                return mixture_losses(_mixture(event), interval)
            pld = _dp_accounting_pld(event, relation.dp_accounting, interval)
    except ArithmeticError:  # parameters at which dp_accounting's functions overflow
        return (no_guarantee(interval),)
    pmfs = [pld._pmf_remove] if pld._symmetric else [pld._pmf_remove, pld._pmf_add]
    result = []
    for pmf in pmfs:
        dense = pmf.to_dense_pmf()
        result.append(
            LossDistribution(
                interval=interval,
                start=int(dense._lower_loss),
                probs=dense._probs.astype(float),
                infinity=float(dense._infinity_mass),
                error=0.0,
            )
        )
    return tuple(result)


def pure_losses(epsilon: float, interval: float) -> LossDistribution:
    """Return the loss of randomised response with the losses +-epsilon, both directions alike.

    Epsilon is rounded up to a multiple of the interval: the pair of the larger epsilon dominates that of
    the smaller one, being the dominating pair of everything that is as private (see `PureDpEvent`).
    """
    if epsilon > _LARGEST_PURE_LOSS:
        return no_guarantee(interval)
    steps = math.ceil(epsilon / interval)
    probs = np.zeros(2 * steps + 1)
    probs[0] = 1 / (1 + math.exp(steps * interval))
    probs[-1] += 1 - probs[0]
    return LossDistribution(interval, -steps, probs, 0.0, float(np.finfo(np.float64).eps))


def _dp_accounting_pld(
    event: DpEvent, relation: dp_accounting.NeighboringRelation, interval: float
) -> Any:
    """Return one event's privacy loss distribution from dp_accounting's factories.

    Not through dp_accounting's PLDAccountant, which (0.6.0) counts repeated randomised response
    once.
    """
    replace = relation is dp_accounting.NeighboringRelation.REPLACE_ONE
    common = {"value_discretization_interval": interval}
    if isinstance(event, dp.LaplaceDpEvent):
        return dp_pld.from_laplace_mechanism(
            event.noise_multiplier, sensitivity=2 if replace else 1, **common
        )
    if isinstance(event, dp.DiscreteLaplaceDpEvent):
        return dp_pld.from_discrete_laplace_mechanism(
            event.noise_parameter, sensitivity=event.sensitivity * (2 if replace else 1), **common
        )
    if isinstance(event, dp.RandomizedResponseDpEvent):
        return dp_pld.from_randomized_response(
            event.noise_parameter, event.num_buckets, neighboring_relation=relation, **common
        )
    if isinstance(event, dp.TruncatedSubsampledGaussianDpEvent):
        return dp_pld.from_truncated_subsampled_gaussian_mechanism(
            dataset_size=event.dataset_size,
            sampling_probability=event.sampling_probability,
            truncated_batch_size=event.truncated_batch_size,
            noise_multiplier=event.noise_multiplier,
            neighboring_relation=relation,
            **common,
        )
    if isinstance(event, dp.PoissonSampledDpEvent):
        return dp_pld.from_laplace_mechanism(
            event.event.noise_multiplier, sampling_prob=event.sampling_probability, **common
        )
    raise TypeError(f"no privacy loss distribution of {event!r}")
