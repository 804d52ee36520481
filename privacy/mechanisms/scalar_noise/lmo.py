"""LMO noise: Laplace noise whose inverse scale is random (LMO-DP, arXiv 2405.18776).

x ~ Laplace(0, 1/u), u = a1 Gamma(k, theta) + a2 N(m, s^2 | low, high) + a3 Exponential(rate) + a4
Uniform(low, high), independent. With M(t) = E exp(t u), a product of moment generating functions, and
t >= 0:

    density f(x) = M'(-|x|) / 2          P(X > t) = M(-t) / 2
    E|X| = E[1/u] = int_0^inf M(-t) dt   Var X = 2 E[1/u^2] = 2 int_0^inf t M(-t) dt

Sampler and accountant read the same parameters: `Exponential` has a rate (mean 1 / rate) and the Gamma a
scale. The authors' sampler passes the rate where its library wants a scale; the tests would see it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.integrate import quad
from scipy.special import gammaincinv

from privacy.mechanisms.scalar_noise.base import (
    Array,
    ScalarNoise,
    noise_from_dict,
    require_not_negative,
    require_positive,
)
from privacy.mechanisms.scalar_noise.laplace import standard_laplace
from privacy.mechanisms.scalar_noise.truncated_normal import tilted_normal, truncated_quantile
from privacy.randomness import RandomSource

_FAR = 700.0  # log of the largest number that is looked at


_TERMS = {
    "a1": ["gamma_shape", "gamma_scale"],
    "a2": ["normal_mean", "normal_std", "normal_low", "normal_high"],
    "a3": ["exponential_rate"],
    "a4": ["uniform_low", "uniform_high"],
}


def _uniforms(shape: int | Sequence[int], source: RandomSource) -> Array:
    """Return uniform in (0, 1), never 0 or 1."""
    return np.asarray(source.random(shape) + 2.0**-54, dtype=np.float64)


@dataclass(frozen=True)
class LmoNoise(ScalarNoise):
    """Scale-mixture Laplace noise; every parameter in units of the sensitivity's inverse.

    A term whose weight is 0 is left out, whatever its other parameters.

    Attributes:
      a1, gamma_shape, gamma_scale: a1 Gamma(shape k, scale theta): mean a1 k theta.
      a2, normal_mean, normal_std, normal_low, normal_high: a2 times a normal truncated to an interval
        of numbers >= 0.
      a3, exponential_rate: a3 Exponential(rate): mean a3 / rate.
      a4, uniform_low, uniform_high: a4 Uniform(low, high), 0 <= low <= high.

    Raises:
      ValueError: A weight is negative, all are 0, or a parameter of a term in use is out of range.

    Guarantee: for one number of sensitivity 1, (`pure_epsilon`, 0)-DP. For a vector clipped in L2 norm
    that figure says nothing: see `privacy.mechanisms.scalar_noise.vector`.
    """

    family = "lmo"
    shape = "log-convex"

    a1: float = 0.0
    a3: float = 0.0
    a4: float = 0.0
    gamma_shape: float = 1.0
    gamma_scale: float = 1.0
    exponential_rate: float = 1.0
    uniform_low: float = 0.0
    uniform_high: float = 1.0
    a2: float = 0.0
    normal_mean: float = 1.0
    normal_std: float = 1.0
    normal_low: float = 0.0
    normal_high: float = 2.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "normal_mean":
                require_not_negative(field.name, value)
            elif not math.isfinite(value):
                raise ValueError(f"Expected a finite normal_mean, got normal_mean={value}")
        for name in ("gamma_shape", "gamma_scale", "exponential_rate", "normal_std"):
            require_positive(name, getattr(self, name))
        if self.uniform_high < self.uniform_low:
            raise ValueError(
                "Expected uniform_low <= uniform_high, got "
                f"uniform_low={self.uniform_low}, uniform_high={self.uniform_high}"
            )
        if self.normal_high - self.normal_low < 0.01 * self.normal_std:
            raise ValueError(
                "Expected normal_high >= normal_low + 0.01 normal_std (a narrower term is uniform), got "
                f"normal_low={self.normal_low}, normal_high={self.normal_high}, "
                f"normal_std={self.normal_std}"
            )
        if not (self.a1 or self.a2 or self.a3 or self.a4 * self.uniform_high):
            raise ValueError("Expected a1, a2, a3 or a4 > 0 (a4 with uniform_high > 0), got none")

    @property
    def largest_order(self) -> float:
        """The least upper bound of the t where M(t) exists: min(1 / (a1 theta), rate / a3)."""
        gamma = 1 / (self.a1 * self.gamma_scale) if self.a1 else math.inf
        return min(gamma, self.exponential_rate / self.a3 if self.a3 else math.inf)

    def log_mgf(self, t: npt.ArrayLike) -> Array:
        """Return ln M(t) = ln E exp(t u); infinite where it does not exist."""
        t = np.asarray(t, dtype=np.float64)
        total = np.zeros(t.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.a1:
                total = total - self.gamma_shape * np.log1p(-self.a1 * self.gamma_scale * t)
            if self.a2:
                total = total + self._normal(self.a2 * t)[0]
            if self.a3:
                total = total - np.log1p(-self.a3 / self.exponential_rate * t)
            if self.a4:
                width = (self.uniform_high - self.uniform_low) * self.a4 * t
                total = total + self.a4 * self.uniform_low * t + _log_mean_exp(width)
        return np.where(t < self.largest_order, total, np.inf)

    def mean_inverse_scale(self, t: npt.ArrayLike) -> Array:
        """Return (ln M)'(t) = E[u exp(t u)] / M(t), for t below `largest_order`: at 0, E[u]."""
        t = np.asarray(t, dtype=np.float64)
        total = np.zeros(t.shape)
        if self.a1:
            scale = self.a1 * self.gamma_scale
            total = total + self.gamma_shape * scale / (1 - scale * t)
        if self.a2:
            total = total + self.a2 * self._normal(self.a2 * t)[1]
        if self.a3:
            mean = self.a3 / self.exponential_rate
            total = total + mean / (1 - mean * t)
        if self.a4:
            width = (self.uniform_high - self.uniform_low) * self.a4
            total = total + self.a4 * self.uniform_low + width * _tilted_mean(width * t)
        return np.asarray(total)

    def _normal(self, t: Array) -> tuple[Array, Array]:
        """Return (ln M, (ln M)') of the truncated normal."""
        m, s = self.normal_mean, self.normal_std
        log_mgf, mean = tilted_normal((self.normal_low - m) / s, (self.normal_high - m) / s, s * t)
        return self.normal_low * t + log_mgf, self.normal_low + s * mean

    def log_density(self, x: npt.ArrayLike) -> Array:
        """See `ScalarNoise`: ln M'(-|x|) / 2."""
        t = -np.abs(np.asarray(x, dtype=np.float64))
        return np.asarray(self.log_mgf(t) + np.log(self.mean_inverse_scale(t)) - math.log(2))

    def log_survival(self, x: npt.ArrayLike) -> Array:
        """See `ScalarNoise`: ln M(-x) / 2; without underflow."""
        x = np.asarray(x, dtype=np.float64)
        right = self.log_mgf(-np.abs(x)) - math.log(2)
        return np.where(x >= 0, right, np.log1p(-np.exp(right)))

    def survival(self, x: npt.ArrayLike) -> Array:
        """See `ScalarNoise`."""
        return np.asarray(np.exp(self.log_survival(x)))

    @property
    def pure_epsilon(self) -> float:
        """eps0 = ln E[u] / E[u exp(-u)] = ln f(0) / f(1): the largest loss of one number."""
        return float(self.log_density(0.0) - self.log_density(1.0))

    @property
    def _order_at_zero(self) -> float:
        """p, where u has a density of order u^(p-1) near 0; infinite where u stays away from 0."""
        order = (self.gamma_shape if self.a1 else 0.0) + (1.0 if self.a3 else 0.0)
        if self.a2:
            order += 1.0 if self.normal_low == 0 else math.inf
        if self.a4 and self.uniform_high:
            order += 1.0 if self.uniform_low == 0 else math.inf
        return order

    def _inverse_moment(self, n: int) -> float:
        """Return E[u^-n] = int t^(n-1) M(-t) dt / (n-1)!, n = 1 or 2; infinite if p <= n."""
        return _inverse_moment(self, n)

    @property
    def std(self) -> float:
        """See `ScalarNoise`: sqrt(2 E[1/u^2])."""
        return math.sqrt(2 * self._inverse_moment(2))

    @property
    def mean_abs(self) -> float:
        """See `ScalarNoise`: E[1/u]."""
        return self._inverse_moment(1)

    @property
    def peak_score(self) -> float:
        """See `ScalarNoise`: M''(0) / M'(0) = E[u] + Var[u] / E[u].

        The variance is exact but for that of the truncated normal, which is at most that of the normal, and
        at most (high - mean) (mean - low) (Bhatia and Davis 2000).
        """
        mean = float(self.mean_inverse_scale(0.0))
        variance = self.gamma_shape * (self.a1 * self.gamma_scale) ** 2
        variance += (self.a3 / self.exponential_rate) ** 2
        variance += (self.a4 * (self.uniform_high - self.uniform_low)) ** 2 / 12
        if self.a2:
            normal = float(self._normal(np.zeros(()))[1])
            spread = (self.normal_high - normal) * (normal - self.normal_low)
            variance += self.a2**2 * min(self.normal_std**2, spread)
        return mean + variance / mean

    def scaled(self, factor: float) -> LmoNoise:
        """See `ScalarNoise`: u is divided by the factor, so each weight is."""
        require_positive("factor", factor)
        values = self.parameters
        for name in ("a1", "a2", "a3", "a4"):
            values[name] /= factor
        return LmoNoise(**values)

    def sample_inverse_scale(self, shape: int | Sequence[int], source: RandomSource) -> Array:
        """Draw independent u, by inverting each term's distribution function; float64."""
        total = np.zeros(shape)
        if self.a1:
            quantile = gammaincinv(self.gamma_shape, _uniforms(shape, source))
            total += self.a1 * self.gamma_scale * quantile
        if self.a2:
            total += self.a2 * self._normal_quantile(_uniforms(shape, source))
        if self.a3:
            total -= self.a3 / self.exponential_rate * np.log(_uniforms(shape, source))
        if self.a4:
            width = self.uniform_high - self.uniform_low
            total += self.a4 * (self.uniform_low + width * _uniforms(shape, source))
        return total

    def _normal_quantile(self, probability: Array) -> Array:
        m, s = self.normal_mean, self.normal_std
        low, high = (self.normal_low - m) / s, (self.normal_high - m) / s
        return np.asarray(m + s * truncated_quantile(low, high, probability))

    def sample(self, shape: int | Sequence[int], source: RandomSource) -> Array:
        """See `ScalarNoise`; each sample has an inverse scale of its own."""
        return np.asarray(
            standard_laplace(shape, source) / self.sample_inverse_scale(shape, source)
        )


def noise_from_json(data: object) -> ScalarNoise:
    """Read noise from a file's JSON: a flat table of LMO parameters, or any family by its name.

    In the latter only the keys family and parameters count; what else is there is for people.

    Raises:
      ValueError: See `lmo_from_dict` and `ScalarNoise.from_dict`.
    """
    if isinstance(data, Mapping) and "family" in data:
        return noise_from_dict(_named_part(data))
    return lmo_from_dict(data)


def _named_part(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: data[key] for key in ("family", "parameters") if key in data}


def lmo_from_dict(data: object) -> LmoNoise:
    """Read LMO noise from JSON: a flat table of parameters, or what `ScalarNoise.to_dict` writes.

    In a flat table a1, a3 and a4 are given (0 leaves a term out), and every parameter of a term in use;
    a2 and the normal's parameters may be left out.

    Raises:
      ValueError: Another shape, a missing, unknown or bad parameter; the message names it.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"Expected LMO noise as a JSON object, got {type(data).__name__}")
    if "family" in data:
        return LmoNoise.from_dict(_named_part(data))
    known = [field.name for field in fields(LmoNoise)]
    unknown = sorted(set(map(str, data)) - set(known))
    if unknown:
        raise ValueError(f"Expected the parameters {' '.join(known)}, got {' '.join(unknown)}")
    needed = ["a1", "a3", "a4"]
    for weight, terms in _TERMS.items():
        if data.get(weight):
            needed += terms
    missing = [name for name in needed if name not in data]
    if missing:
        raise ValueError(f"Expected the parameters {' '.join(missing)} too, got {sorted(data)}")
    for name, value in data.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"Expected a number {name}, got {name}={value!r}")
    return LmoNoise(**{name: float(value) for name, value in data.items()})


@lru_cache(maxsize=1024)
def _inverse_moment(noise: LmoNoise, n: int) -> float:
    order = noise._order_at_zero
    if order <= n:
        return math.inf

    def integrand(s: float) -> float:  # t = exp(s)
        return math.exp(n * s + float(noise.log_mgf(-math.exp(s))))

    centre = -math.log(float(noise.mean_inverse_scale(0.0)))
    steps = (-60, -20, -8, -3, 0, 2, 4, 7, 11, 16, 25, 40, 80, 300)
    parts = [
        quad(integrand, centre + a, centre + b, epsabs=0, epsrel=1e-10, limit=400)[0]
        for a, b in itertools.pairwise(steps)
    ]
    if math.isfinite(order):  # M(-t) goes as t^-p
        parts.append(integrand(centre + steps[-1]) / (order - n))
    return math.fsum(parts)


def _log_mean_exp(width: Array) -> Array:
    """Return ln of the mean of exp over [0, width], of either sign: ln(expm1(w) / w)."""
    size = np.maximum(np.abs(width), 1e-12)
    # For w < 0: (1 - exp(-|w|)) / |w|; for w > 0 exp(w) times that.
    negative = np.log(-np.expm1(-size)) - np.log(size)
    return np.where(np.abs(width) < 1e-12, width / 2, negative + np.maximum(width, 0.0))


def _tilted_mean(width: Array) -> Array:
    """Return the mean of v in [0, 1] under a density proportional to exp(width v): 1/(1-exp(-w)) - 1/w."""
    size = np.abs(width)
    small = size < 1e-2
    safe = np.where(small, 1.0, size)
    series = 0.5 - size / 12 + size**3 / 720 - size**5 / 30240
    left = np.where(small, series, 1 / safe - 1 / np.expm1(np.minimum(safe, _FAR)))
    return np.where(width > 0, 1 - left, left)
