"""The PRV accountant: Opacus' numerical composition, valid within its own error terms."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft
from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent
from opacus.accountants.analysis import prv as opacus_prv
from scipy.special import ndtr

from privacy.accountants.base import Accountant
from privacy.accountants.gaussian_loss import loss_at, output_at
from privacy.accountants.loss_distribution import LossDistribution
from privacy.vocabulary import Relation

EPSILON_ERROR = 0.01  # Opacus' default
_DELTA_ERROR_SHARE = 1e-3  # Opacus' default: delta_error = delta / 1000
_DELTA_ERROR = 1e-10  # where delta is what is asked
_LARGEST_DOMAIN = 2**22  # points; more would take minutes
_WIDTH = 12.0  # standard deviations of the output that a mean is integrated over
Array = npt.NDArray[np.float64]


class _Prv:
    """The loss of a Poisson-sampled Gaussian, in one direction, as a random variable.

    Remove: ln(M/N) under M = (1-q) N(0, s^2) + q N(1, s^2), with N = N(0, s^2); add: ln(N/M) under N.
    The interface of Opacus' PoissonSubsampledGaussianPRV, which has the direction remove only, as
    far as its composition uses it.
    """

    def __init__(self, sample_rate: float, noise_multiplier: float, add: bool) -> None:
        self.sample_rate = sample_rate
        self.noise_multiplier = noise_multiplier
        self.add = add

    def _below(self, x: Array) -> Array:
        """P[output <= x]."""
        q, s = self.sample_rate, self.noise_multiplier
        zero: Array = ndtr(x / s)
        return zero if self.add else (1 - q) * zero + q * ndtr((x - 1) / s)

    def cdf(self, t: Any) -> Array:
        """P[loss <= t]."""
        t = np.asarray(t, dtype=np.float64)
        q, s = self.sample_rate, self.noise_multiplier
        if self.add:
            return 1 - self._below(output_at(-t, s, q))
        return self._below(output_at(t, s, q))

    def reach(self) -> tuple[float, float]:
        """(least, largest) loss that has mass above 1e-30."""
        q, s = self.sample_rate, self.noise_multiplier
        ends = np.array([-_WIDTH * s, 1 + _WIDTH * s])
        low, high = loss_at(ends, s, q)
        return (float(-high), float(-low)) if self.add else (float(low), float(high))

    def mean(self, t_min: float, t_max: float) -> float:
        """E[loss] given t_min <= loss <= t_max, by Gauss-Legendre panels over the output."""
        q, s = self.sample_rate, self.noise_multiplier
        ends = np.array([-t_max, -t_min] if self.add else [t_min, t_max])
        low, high = output_at(ends, s, q)
        low, high = max(float(low), -_WIDTH * s), min(float(high), 1 + _WIDTH * s)
        # The loss bends within s^2, the density within s.
        panels = max(1, math.ceil((high - low) / min(s / 2, s * s / 2)))
        edges = np.linspace(low, high, panels + 1)
        nodes, weights = np.polynomial.legendre.leggauss(10)
        half = (high - low) / panels / 2
        x = (edges[:-1, None] + half * (1 + nodes)).ravel()
        zero = np.exp(-((x / s) ** 2) / 2)
        density = zero if self.add else (1 - q) * zero + q * np.exp(-(((x - 1) / s) ** 2) / 2)
        density = density * np.tile(weights, panels)
        losses = loss_at(x, s, q)
        return float((density * (-losses if self.add else losses)).sum() / density.sum())


def _discretised(prv: _Prv, domain: Any) -> Any:
    """Opacus' `discretize` of a truncated random variable, with the mean by `_Prv`.

    Opacus integrates the distribution function adaptively, which is slow, and where the function is
    a step (little noise) ends with a warning and a mean that is off; the composition's error bound
    rests on that mean. And it evaluates the function everywhere, twice.
    """
    low, high = prv.reach()
    first = max(0, math.floor((low - domain.t_min) / domain.dt) - 1)
    last = min(domain.size, math.ceil((high - domain.t_min) / domain.dt) + 2)
    edges = domain.t_min + (np.arange(first, last + 1) - 0.5) * domain.dt
    below = prv.cdf(np.clip(edges, domain.t_min, domain.t_max))
    pmf = np.zeros(domain.size)
    pmf[first:last] = np.diff(below) / (below[-1] - below[0])
    ts = domain.t_min + np.arange(first, last) * domain.dt
    shift = prv.mean(domain.t_min, domain.t_max) - float(ts @ pmf[first:last])
    if abs(shift) >= domain.dt / 2:
        raise RuntimeError("The discrete mean differs from the continuous one")
    return opacus_prv.DiscretePRV(pmf=pmf, domain=domain.shift_right(shift))


class PrvAccountant(Accountant):
    """Composes privacy random variables (Gopi, Lee and Wutschitz 2021), in both directions.

    The upper end of the method's error interval is given, with Opacus' default error of 0.01 in
    epsilon and delta / 1000 in delta.
    """

    name = "prv"
    is_bound = True
    trust = (
        "valid within its own error terms: the upper end of its error interval (0.01 in epsilon, "
        "delta / 1000 in delta) is given, and its numerical truncation is not proven separately"
    )

    def note(self, events: Mapping[DpEvent, int]) -> str:
        """Say that the numbers hold within the method's error terms."""
        return "valid within its own error terms" if self._prepared(events) else ""

    def _refusal(self, event: DpEvent) -> str | None:
        if isinstance(event, dp.GaussianDpEvent):
            return None
        sampled = isinstance(event, dp.PoissonSampledDpEvent) and isinstance(
            event.event, dp.GaussianDpEvent
        )
        if not sampled:
            return "only (Poisson-sampled) Gaussian mechanisms have a privacy random variable here"
        if self.relation.doubles:
            return "its privacy random variable is stated for zero-out and add-or-remove-one only"
        return None

    def _epsilon(self, events: Counter[DpEvent], delta: float) -> float:
        if delta == 0:
            return math.inf
        error = delta * _DELTA_ERROR_SHARE
        composed = _composed(frozenset(events.items()), self.relation, error)
        if composed is None:
            return math.inf
        return max(part.epsilon(delta - error) for part in composed) + EPSILON_ERROR

    def _delta(self, events: Counter[DpEvent], epsilon: float) -> float:
        composed = _composed(frozenset(events.items()), self.relation, _DELTA_ERROR)
        if composed is None:
            return 1.0
        shifted = max(0.0, epsilon - EPSILON_ERROR)
        lowered = 1.0 - math.exp(epsilon - EPSILON_ERROR) if epsilon < EPSILON_ERROR else 0.0
        # At a negative epsilon e, delta(e) <= delta(0) + 1 - exp(e).
        return max(float(part.delta(shifted)[0]) for part in composed) + lowered + _DELTA_ERROR


@lru_cache(maxsize=8)
def _composed(
    items: frozenset[tuple[DpEvent, int]], relation: Relation, delta_error: float
) -> tuple[LossDistribution, ...] | None:
    """Compose each direction; None where the method fails or needs too much memory."""
    counts: Counter[tuple[float, float]] = Counter()  # (rate, noise multiplier)
    precision = 0.0
    for event, count in items:
        if isinstance(event, dp.GaussianDpEvent):
            precision += count / event.noise_multiplier**2
        else:
            counts[event.sampling_probability, event.event.noise_multiplier] += count
    if precision > 0:
        factor = 2.0 if relation.doubles else 1.0
        counts[1.0, precision**-0.5 / factor] += 1
    parts = sorted(counts.items())
    numbers = [count for _, count in parts]
    remove = [_Prv(q, s, add=False) for (q, s), _ in parts]
    directions = [remove]
    if any(q < 1 for (q, _), _ in parts):
        directions.append([_Prv(q, s, add=True) for (q, s), _ in parts])
    with np.errstate(all="ignore"), warnings.catch_warnings():
        # Opacus says it of the RDP bracket that gives the domain; any bracket will do.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        try:
            reach = opacus_prv.compute_safe_domain_size(remove, numbers, EPSILON_ERROR, delta_error)
            mesh = EPSILON_ERROR / math.sqrt(sum(numbers) * math.log(12 / delta_error) / 2)
            if not math.isfinite(reach) or 2 * reach / mesh > _LARGEST_DOMAIN:
                return None
            domain = _domain(reach, mesh)
            return tuple(_compose_direction(prvs, numbers, domain) for prvs in directions)
        except (RuntimeError, ValueError, OverflowError):
            return None


def _domain(reach: float, mesh: float) -> Any:
    """As Opacus' `create_aligned(-reach, reach, mesh)`, of a length that has a fast transform."""
    size = 2 * math.ceil(reach / mesh) + 2
    while (found := int(scipy.fft.next_fast_len(size, real=True))) % 2:
        size = found + 1
    half = found // 2 - 1
    return opacus_prv.Domain(-half * mesh, (half + 1) * mesh, found)


def _compose_direction(prvs: list[_Prv], numbers: list[int], domain: Any) -> LossDistribution:
    """Opacus' composition; epsilon and delta are read from it as from our own distributions.

    Its losses are rounded up to multiples of the mesh, by less than 1 % of the error in epsilon.
    """
    discrete = [_discretised(prv, domain) for prv in prvs]
    composed = opacus_prv.compose_heterogeneous(discrete, numbers)
    mesh = float(composed.domain.dt)
    return LossDistribution(
        interval=mesh,
        start=math.ceil(composed.domain.t_min / mesh - 1e-6),
        probs=np.asarray(composed.pmf, dtype=np.float64),
        infinity=0.0,
        error=sum(numbers) * float(np.finfo(np.float64).eps),
    )
