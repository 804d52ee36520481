"""Normalise events before accounting: rewrite special cases as the mechanisms they equal."""

from __future__ import annotations

from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent

from privacy.accountants.vector_bound import gaussian_bound, why_no_bound
from privacy.events.kinds import (
    DiscreteGaussianSumDpEvent,
    ScalarNoiseDpEvent,
    VectorNoiseDpEvent,
    noise_of,
)
from privacy.secure_sum.bound import noise_multiplier


def as_accounted(event: DpEvent, replace: bool = False) -> DpEvent:
    """Return the event that stands for this one; the same event where none does.

    * One number with Gaussian or Laplace noise: dp_accounting's own event.
    * A vector of one coordinate: one number.
    * Another vector with scalar noise: the Gaussian mechanism whose mu bounds it, see `vector_bound`.
    * A sum with shares of discrete Gaussian noise: the Gaussian mechanism that dominates it, see `secure_sum.bound`.

    Guarantee: what it costs by any accountant that gives a bound, alone, sampled and composed, is at
    least what the event costs. A sampled event whose Gaussian mechanism dominates it, but does not equal it, is left as it is under
    replace-one: there the sampled pair is of three distributions, and domination is of two.

    Args:
      replace: Whether the neighbouring relation is replace-one.
    """
    if isinstance(event, dp.PoissonSampledDpEvent):
        if replace and _is_dominated(event.event):
            return event
        return dp.PoissonSampledDpEvent(event.sampling_probability, as_accounted(event.event))
    if isinstance(event, dp.SelfComposedDpEvent):  # several releases of one sample
        return dp.SelfComposedDpEvent(as_accounted(event.event), event.count)
    if isinstance(event, dp.ComposedDpEvent):
        return dp.ComposedDpEvent(tuple(as_accounted(part) for part in event.events))
    if isinstance(event, VectorNoiseDpEvent):
        if event.dimension == 1:
            return as_accounted(ScalarNoiseDpEvent(event.family, event.parameters))
        if why_unsupported(event) is None:
            return dp.GaussianDpEvent(1 / gaussian_bound(noise_of(event)))
    if isinstance(event, DiscreteGaussianSumDpEvent):
        return dp.GaussianDpEvent(noise_multiplier(event.sigma, event.shares, event.sensitivity))
    if isinstance(event, ScalarNoiseDpEvent):
        values = dict(event.parameters)
        if event.family == "gaussian":
            return dp.GaussianDpEvent(values["sigma"])
        if event.family == "laplace":
            return dp.LaplaceDpEvent(values["scale"])
    return event


def why_unsupported(event: DpEvent) -> str | None:
    """Return the reason why no accountant can represent an event with a vector in it, or None."""
    if isinstance(event, dp.PoissonSampledDpEvent | dp.SelfComposedDpEvent):
        reason = why_unsupported(event.event)
        if (
            reason is None
            and isinstance(event, dp.PoissonSampledDpEvent)
            and _is_dominated(event.event)
        ):
            return "its amplification by sampling is proven for zero-out and add-or-remove-one only"
        return reason
    if isinstance(event, dp.ComposedDpEvent):
        return next(filter(None, map(why_unsupported, event.events)), None)
    if isinstance(event, VectorNoiseDpEvent) and event.dimension != 1:
        return why_no_bound(noise_of(event))
    return None


def _is_dominated(event: DpEvent) -> bool:
    """Return True if a Gaussian mechanism stands for an event or a part of it without being equal to it."""
    if isinstance(event, dp.SelfComposedDpEvent):
        return _is_dominated(event.event)
    if isinstance(event, dp.ComposedDpEvent):
        return any(map(_is_dominated, event.events))
    if isinstance(event, VectorNoiseDpEvent):
        return event.dimension != 1 and event.family != "gaussian"
    return isinstance(event, DiscreteGaussianSumDpEvent)
