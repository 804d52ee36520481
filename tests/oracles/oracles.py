"""Numeric oracles of what events cost, which share no code with the accountants.

* Quadrature, to about 1e-12: the outputs of up to two mechanisms are integrated on a grid, and all
  plain Gaussians are the closed form inside.
* Brute-force binning, for many mechanisms: the outputs of each are cut into small cells, the loss in
  a cell rounded down to a grid, and the results convolved term by term (no Fourier transform). That
  is a lower bound of delta, up to float64 sums of positive numbers.

And random schedules of mixed events to try the accountants on.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent
from scipy.special import log_ndtr, ndtr

from privacy.events import constructors as ev
from privacy.events.kinds import DiscreteGaussianDpEvent
from privacy.events.multiset import multiset
from privacy.guarantee import Relation

Array = npt.NDArray[np.float64]
WIDTH = 2e-3  # of the grid of losses
_CELLS = 30_000
_GAUSSIAN_ONLY = 0.4  # of the schedules: those that every accountant of sampled Gaussians takes
REPLACE = Relation.REPLACE_ONE


def closed_form(mu: float, epsilon: Array) -> Array:
    """Delta of mu-GDP at any real epsilon."""
    upper, lower = log_ndtr(-epsilon / mu + mu / 2), epsilon + log_ndtr(-epsilon / mu - mu / 2)
    return np.asarray(np.exp(upper) * -np.expm1(np.minimum(lower - upper, 0.0)))


def sampled(event: DpEvent) -> tuple[float, Any]:
    """(sampling rate, the mechanism that is sampled)."""
    if isinstance(event, dp.PoissonSampledDpEvent):
        return event.sampling_probability, event.event
    return 1.0, event


def _mixture(q: float, log_density: Any, shift: float) -> Array:
    if q == 1:
        return np.asarray(log_density(shift))
    return np.logaddexp(math.log1p(-q) + log_density(0.0), math.log(q) + log_density(shift))


# -- quadrature --------------------------------------------------------------------------------


def output_density(event: DpEvent, relation: Relation) -> tuple[Array, Array, Array]:
    """(ln P, ln Q, weights) on a grid of outputs, for the direction in which a record is removed."""
    q, noise = sampled(event)
    change = -1.0 if relation is REPLACE else 0.0
    if isinstance(noise, DiscreteGaussianDpEvent):
        s, d = noise.sigma, noise.sensitivity
        x = np.arange(-math.ceil(12 * s) - d, math.ceil(12 * s) + d + 1, dtype=np.float64)
        total = math.log(np.exp(-((x / s) ** 2) / 2).sum())
        p, r = (-(((x - shift * d) / s) ** 2) / 2 - total for shift in (1.0, change))
        return p, r, np.ones(x.size)
    scale = noise.noise_multiplier
    if isinstance(noise, dp.GaussianDpEvent):
        # The trapezoidal rule: exponentially accurate for what is smooth and vanishes at both ends.
        x = np.linspace(-10 * scale - 1, 10 * scale + 1, 1601)
        weights = np.full(x.size, x[1] - x[0])

        def log_density(shift: float) -> Array:
            return -((x - shift) ** 2) / (2 * scale**2) - math.log(scale * math.sqrt(2 * math.pi))
    else:
        # Gauss-Legendre on panels between the kinks at the shifts -1, 0 and 1.
        tail = np.concatenate([np.linspace(0, 5, 11), np.linspace(6, 50, 45)]) * scale
        inner = np.linspace(-1, 1, 2 * max(2, math.ceil(2 / scale)) + 1)
        panels = np.concatenate([-1 - tail[:0:-1], inner, 1 + tail[1:]])
        nodes, node_weights = np.polynomial.legendre.leggauss(12)
        half, middle = np.diff(panels)[:, None] / 2, (panels[:-1] + panels[1:])[:, None] / 2
        x, weights = (middle + half * nodes).ravel(), (half * node_weights).ravel()

        def log_density(shift: float) -> Array:
            return np.asarray(-np.abs(x - shift) / scale - math.log(2 * scale))

    return _mixture(q, log_density, 1.0), _mixture(q, log_density, change), weights


def quadrature_delta(
    events: Sequence[DpEvent],
    gaussians_mu: float,
    epsilon: float,
    relation: Relation = Relation.ZERO_OUT,
) -> float:
    """The exact delta, the larger one of the two directions.

    Args:
      events: Up to two events, each once.
      gaussians_mu: The mu of all plain Gaussians together, > 0.
      epsilon: >= 0.
      relation: The neighbouring relation.
    """
    results = []
    for turned in (False, True):
        axes = []
        for event in events:
            p, q, weights = output_density(event, relation)
            p, q = (q, p) if turned else (p, q)
            mass = np.exp(p) * weights
            keep = mass > 1e-25
            axes.append((mass[keep], (p - q)[keep]))
        total = 0.0
        if not axes:
            total = float(closed_form(gaussians_mu, np.asarray(epsilon, dtype=np.float64)))
        elif len(axes) == 1:
            mass, loss = axes[0]
            total = float(mass @ closed_form(gaussians_mu, epsilon - loss))
        else:
            (mass_a, loss_a), (mass_b, loss_b) = sorted(axes, key=lambda axis: axis[0].size)
            for m, loss in zip(mass_a, loss_a, strict=True):
                total += m * float(mass_b @ closed_form(gaussians_mu, epsilon - loss - loss_b))
        results.append(total)
    return max(results)


# -- binning -----------------------------------------------------------------------------------


def _cells(event: DpEvent, relation: Relation) -> tuple[Array, Array, Array, Array]:
    """(mass of P, mass of Q, least and largest ln P/Q) in cells of outputs; P has the record."""
    q, noise = sampled(event)
    change = -1.0 if relation is REPLACE else 0.0
    if isinstance(noise, DiscreteGaussianDpEvent):
        p, r, _ = output_density(event, relation)
        return np.exp(p), np.exp(r), p - r, p - r
    scale = noise.noise_multiplier
    if isinstance(noise, dp.GaussianDpEvent):
        edges = np.linspace(-11 * scale - 1, 11 * scale + 1, _CELLS)

        def log_density(shift: float) -> Array:
            return -((edges - shift) ** 2) / (2 * scale**2)

        def above(x: Array) -> Array:
            return np.asarray(ndtr(-x / scale))
    else:
        reach = 45 * scale
        inner = np.linspace(-1, 1, _CELLS // 2 + 1)  # the loss moves between the shifts only
        edges = np.concatenate([[-1 - reach], inner, [1 + reach]])

        def log_density(shift: float) -> Array:
            return np.asarray(-np.abs(edges - shift) / scale)

        def above(x: Array) -> Array:
            with np.errstate(over="ignore"):
                return np.where(x > 0, np.exp(-x / scale) / 2, 1 - np.exp(x / scale) / 2)

    def mass(shift: float) -> Array:
        # By symmetry, on the side where the mass is small.
        right = -np.diff(above(edges - shift))
        left = np.diff(above(shift - edges))
        return np.where(edges[:-1] > shift, right, left)

    with_record = (1 - q) * mass(0.0) + q * mass(1.0)
    without = (1 - q) * mass(0.0) + q * mass(change) if relation is REPLACE else mass(0.0)
    loss = _mixture(q, log_density, 1.0)
    loss = loss - (_mixture(q, log_density, change) if relation is REPLACE else log_density(0.0))
    return with_record, without, loss[:-1], loss[1:]  # the loss rises with the output


def binned(event: DpEvent, turned: bool, relation: Relation) -> tuple[int, Array]:
    """(first index, masses of the loss rounded down to multiples of WIDTH), tails cut off."""
    p, q, low, high = _cells(event, relation)
    mass, least = (q, -high) if turned else (p, low)
    index = np.floor(least / WIDTH).astype(np.int64)
    kept = (mass > 0) & (index > -12_000)
    index, mass = np.minimum(index[kept], 12_000), mass[kept]  # a lower loss is a lower bound
    first = int(index.min())
    masses: Array = np.bincount(index - first, mass).astype(np.float64)
    return first, masses


def binned_delta(
    schedule: Mapping[DpEvent, int],
    epsilon: float,
    relation: Relation = Relation.ZERO_OUT,
) -> float:
    """A lower bound of delta: the larger one of the two directions."""
    return float(binned_deltas(schedule, [epsilon], relation)[0])


def binned_deltas(
    schedule: Mapping[DpEvent, int],
    epsilons: Sequence[float],
    relation: Relation = Relation.ZERO_OUT,
) -> Array:
    """Lower bounds of delta at several epsilons."""
    best = np.zeros(len(epsilons))
    for turned in (False, True):
        start, masses = 0, np.ones(1)
        for event, count in schedule.items():
            first, single = binned(event, turned, relation)
            for _ in range(count):
                masses = np.convolve(masses, single)
                start += first
                kept = np.flatnonzero(masses > 1e-18)  # dropping mass lowers delta
                start += int(kept[0])
                masses = masses[kept[0] : kept[-1] + 1]
        losses = (start + np.arange(masses.size)) * WIDTH
        for k, epsilon in enumerate(epsilons):
            over = losses > epsilon
            found = float(-np.expm1(epsilon - losses[over]) @ masses[over])
            best[k] = max(best[k], found)
    return best


def rounding(schedule: Mapping[DpEvent, int], relation: Relation) -> float:
    """The most that the binning lowers the loss by: WIDTH and the height of a cell, for each."""
    total = 0.0
    for event, count in schedule.items():
        p, _, low, high = _cells(event, relation)
        total += count * (WIDTH + float(np.max((high - low)[p > 1e-15])))
    return total


# -- random schedules --------------------------------------------------------------------------


def _mechanism(rng: random.Random, relation: Relation, gaussian_only: bool) -> DpEvent:
    """A mechanism other than a plain Gaussian, of a kind that has a proof under the relation."""
    kinds = ["sampled", "sampled", "laplace", "discrete", "sampled laplace"]
    kind = "sampled" if gaussian_only else rng.choice(kinds)
    rate = 10 ** rng.uniform(-3, -0.1)
    if kind == "laplace":
        return dp.LaplaceDpEvent(rng.uniform(0.7, 4))
    if kind == "discrete":
        return DiscreteGaussianDpEvent(rng.uniform(0.8, 30), rng.choice([1, 1, 2]))
    if kind == "sampled laplace" and relation is not REPLACE:
        return dp.PoissonSampledDpEvent(rate, dp.LaplaceDpEvent(rng.uniform(0.5, 4)))
    return dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(rng.uniform(0.6, 3)))


def random_relation(rng: random.Random) -> Relation:
    """Replace-one in one of four, zero-out in two."""
    drawn = rng.random()
    if drawn < 0.25:
        return REPLACE
    return Relation.ADD_OR_REMOVE_ONE if drawn < 0.5 else Relation.ZERO_OUT


def random_small_schedule(
    rng: random.Random, relation: Relation
) -> tuple[list[DpEvent], list[DpEvent]]:
    """(up to two mechanisms, some plain Gaussians), for the quadrature."""
    alone = rng.random() < _GAUSSIAN_ONLY
    count = rng.choice([0, 1, 1, 1, 1, 1, 2, 2])
    events = [_mechanism(rng, relation, alone) for _ in range(count)]
    gaussians = [dp.GaussianDpEvent(rng.uniform(0.8, 6)) for _ in range(rng.randint(1, 4))]
    return events, gaussians


def gaussians_mu(gaussians: Sequence[DpEvent], relation: Relation) -> float:
    """mu of plain Gaussians together."""
    factor = 2.0 if relation is REPLACE else 1.0
    return factor * math.sqrt(sum(g.noise_multiplier**-2 for g in gaussians))


def random_long_schedule(rng: random.Random, relation: Relation) -> Counter[DpEvent]:
    """Two to four mechanisms, several times each, and perhaps plain Gaussians; for the binning."""
    events: list[DpEvent] = []
    alone = rng.random() < _GAUSSIAN_ONLY
    for k in range(rng.randint(2, 4)):
        one = _mechanism(rng, relation, alone or k % 2 == 1)
        events.append(dp.SelfComposedDpEvent(one, rng.randint(1, 6)))
    if rng.random() < 0.7:
        events.append(ev.gaussian(rng.uniform(2, 8), rng.randint(1, 3)))
    return multiset(events)
