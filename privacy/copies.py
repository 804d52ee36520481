"""Events that account for several copies of one record, removed together.

The statement. Let a record be in a party's data k times (or let one person have k records), and let all of them be
replaced by null records. Each copy is sampled independently of the others, so the number of copies in a sample is
binomial, and their contributions, each clipped to the same norm, add up to at most that number times it. That is
not k-fold group privacy of epsilon, which is larger: the pair of distributions is known.

Poisson-sampled Gaussian (rate q, noise multiplier s): P = sum_j Bin(k, q)(j) N(j, s^2) against Q = N(0, s^2), an
event of the kind MixtureOfGaussians.

Proof. Divide by the clipping norm. Let copy i contribute u_i, |u_i| <= 1, in any dimension (u_i may depend on
earlier outputs and differ between copies). The other records are sampled independently of the copies and shift both
outputs by the same random vector; the hockey-stick divergence is jointly convex, so it is at most that of the worst
fixed shift, and does not change with a shift. What is left is P = sum_S w_S N(v_S, s^2) against N_0, with S the set
of copies in the sample, w_S its probability, v_S the sum of u_i over S, and |v_S| <= |S|. For a set A with
a = N_0(A), Neyman and Pearson give N_v(A) <= Phi(Phi^-1(a) + |S|/s) and >= Phi(Phi^-1(a) - |S|/s). So
P(A) - e^eps N_0(A) <= sum_S w_S Phi(Phi^-1(a) + |S|/s) - e^eps a: the value of the pair above at the half-line
x >= t of mass a, the same t for every j. And N_0(A) - e^eps P(A) <= a - e^eps sum_S w_S Phi(Phi^-1(a) - |S|/s): its
value, in the other direction, at the half-line x <= t of mass a. Both are at most the divergence of that pair; copies
that all contribute the same vector of norm 1 attain it. A dominating pair of each step gives one of the adaptive
composition (Zhu, Dong and Wang 2022, arXiv 2106.08567, theorem 10). Several Gaussian mechanisms on one sample are
one for each S (`privacy.events.constructors.poisson_sampled`), so the same holds for their multiplier together.

A sum with shares of discrete Gaussian noise (`privacy.secure_sum.bound`) is the same with the multiplier of the Gaussian
mechanism that dominates it: for a shift by |S| records the probability of A lies between the same two bounds (that is what
domination says), and nothing else of the normal distribution is used.

Other kinds:

* Gaussian, discrete Gaussian, one number or vector with noise of a family, without sampling: the contribution is at
  most k times as large; the noise is 1/k of it.
* The latter two with Poisson sampling at q: with probability q' = 1 - (1 - q)^k a copy is in the sample, and then
  the contribution is at most k times as large; so the event is dominated by sampling at q' with noise 1/k (the
  mixture over sampled sets is jointly convex, and theorem 11 of the same paper amplifies). Valid, not tight.
* Pure privacy: k epsilon (group privacy: k steps from one record to none).

A truncated Poisson sample (`events.constructors.truncated_sgd`) is refused by name: whether one copy is kept depends there on
the others, so that their number in a sample is not binomial.

Two parties that each hold the record release each their own events: the whole is their composition, so that both
parties' events are added up, each for its own number of copies.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent
from scipy.stats import binom

from privacy.events import constructors as ev
from privacy.events.kinds import (
    DiscreteGaussianDpEvent,
    DiscreteGaussianSumDpEvent,
    PureDpEvent,
    ScalarNoiseDpEvent,
    VectorNoiseDpEvent,
    noise_of,
)
from privacy.events.multiset import is_private, multiset
from privacy.events.serialization import kind
from privacy.secure_sum.bound import noise_multiplier

MOST = 1000
"""Largest number of copies: the mixture has a Gaussian for each."""


class UnknownCopies(ValueError):
    """An event of which the cost of copies is not proven here; the message names it."""


def events_of_copies(events: Mapping[DpEvent, int], copies: int) -> Counter[DpEvent]:
    """Return the events that the removal of all copies of a record costs; the module has the proof.

    Args:
      events: Of one party: what the removal of one record costs, with counts.
      copies: How often the record is in the party's data, 1 to 1000.

    Raises:
      UnknownCopies: A kind of event for which nothing is proven.
      ValueError: A number of copies out of range.
    """
    if isinstance(copies, bool) or copies != int(copies) or not 1 <= copies <= MOST:
        raise ValueError(f"Expected a whole number of copies from 1 to {MOST}, got copies={copies}")
    if copies == 1:
        return multiset(events)
    result: Counter[DpEvent] = Counter()
    for event, count in multiset(events).items():
        result[_of_copies(event, int(copies)) if is_private(event) else event] += count
    return result


def _of_copies(event: DpEvent, copies: int) -> DpEvent:
    if isinstance(event, dp.PoissonSampledDpEvent):
        rate, inner = event.sampling_probability, event.event
        if isinstance(inner, dp.GaussianDpEvent):
            return _mixture(inner.noise_multiplier, rate, copies)
        if isinstance(inner, DiscreteGaussianSumDpEvent):
            noise = noise_multiplier(inner.sigma, inner.shares, inner.sensitivity)
            return _mixture(noise, rate, copies)
        if isinstance(inner, dp.LaplaceDpEvent | ScalarNoiseDpEvent | VectorNoiseDpEvent):
            some = -math.expm1(copies * math.log1p(-rate)) if rate < 1 else 1.0
            return dp.PoissonSampledDpEvent(some, _of_copies(inner, copies))
    if isinstance(event, dp.GaussianDpEvent):
        return ev.gaussian(event.noise_multiplier / copies)
    if isinstance(event, dp.LaplaceDpEvent):
        return dp.LaplaceDpEvent(event.noise_multiplier / copies)
    if isinstance(event, DiscreteGaussianDpEvent):
        return DiscreteGaussianDpEvent(event.sigma, event.sensitivity * copies)
    if isinstance(event, DiscreteGaussianSumDpEvent):
        return DiscreteGaussianSumDpEvent(event.sigma, event.shares, event.sensitivity * copies)
    if isinstance(event, ScalarNoiseDpEvent):
        return ev.scalar_noise(noise_of(event).scaled(1 / copies))
    if isinstance(event, VectorNoiseDpEvent):
        return ev.vector_noise(noise_of(event).scaled(1 / copies), event.dimension)
    if isinstance(event, PureDpEvent):
        return ev.pure_dp(event.epsilon * copies)
    raise UnknownCopies(
        f"What {copies} copies of a record cost is not proven for the event {kind(event)}; got {event!r}"
    )


def _mixture(noise: float, rate: float, copies: int) -> DpEvent:
    numbers = range(copies + 1)
    weights = [float(binom.pmf(j, copies, rate)) for j in numbers]
    weights[0] = 1 - math.fsum(weights[1:])  # the sum is 1 whatever the rounding
    return dp.MixtureOfGaussiansDpEvent(noise, tuple(float(j) for j in numbers), tuple(weights))
