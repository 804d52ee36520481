"""Robust means of the silos' updates: median, trimmed mean, norm-clipped mean.

Guarantee: the inputs are released, so whatever is computed of them is post-processing and costs nothing. With noise by
the server it is not so (a silo may move a median, or the others' clipping, by more than the noise is made for): the
settings refuse it.

* ``trimmed-mean``, ``median``: coordinate by coordinate the k smallest and k largest values are left out, and the others
  averaged (Yin et al. 2018, arXiv 1803.01498). k = ceil(trim n), for the median as many as leave one or two, (n - 1) // 2
  rounded down; at least one value stays. Up to k hostile silos cannot move a coordinate beyond what honest ones sent.
* ``norm-clipped-mean``: each update is cut to the (lower) median of the updates' norms, and the mean taken. Below half
  of hostile silos no one weighs more than an honest one may; their directions stay.

Noise in the result, for what subtracts it (``server.noise_correction``). The mean of n silos with noise s has s / sqrt(n).

* *Ranks.* For independent N(0, s_i^2) and share a = k/n cut at each end, asymptotically (the influence function of an
  L-estimator under independent, not identical distributions; Stigler 1974; for equal s the trimmed mean of Huber 1964)

      variance = sum_i E psi(X_i)^2 / (sum_i P(|X_i| < c))^2,   psi(x) = x cut to [-c, c],   mean_i P(X_i > c) = a.

  For the median it tends to (pi/2) n / (sum_i 1/s_i)^2, with equal noise pi/2 s^2/n: 1.25 times the mean's deviation.
  For equal noise the variance is known exactly at every n (:func:`equal_variance`); the asymptotic one is multiplied by
  the ratio of exact to asymptotic at equal noise. It is about noise: what the silos' own updates differ by comes on top,
  and a coordinate where they differ by more than the noise has another median.
* *Norm-clipped.* With factors f_i = min(1, t / ||u_i||): sqrt(sum_i f_i^2 s_i^2) / n. The factors are taken as given; they
  move with the noise by about 1 / sqrt(2 d) of themselves.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from scipy.special import log_ndtr, ndtr, ndtri
from torch import Tensor

from fedllm.settings.server import ServerSettings
from fedllm.training.adaptive_clip import bounded_share
from server.aggregation import Contribution, mean_update

_CHUNK = 1 << 22  # numbers that are sorted at once
_NODES = 160  # of the quadrature, in each of two dimensions
_NARROW = 1e-4  # interval of a normal that is taken as uniform

Combined = tuple[dict[str, Tensor], dict[str, float] | None]
"""The update, and the standard deviation of its noise by tensor, None where it is not known."""


def combine(
    server: ServerSettings, contributions: Sequence[Contribution], params: Mapping[str, Tensor]
) -> Combined:
    """Combine the updates of silos that add their own noise, by ``server.aggregation``.

    The order of the contributions changes nothing.

    Args:
        contributions: at least one.
        params: names and shapes.

    Raises:
        ValueError: there is none.
    """
    ordered = sorted(contributions, key=lambda c: c.silo)
    if server.aggregation == "norm-clipped-mean":
        return _norm_clipped(ordered, params)
    cut = trimmed(server, len(ordered))
    if cut == 0:
        return mean_update(ordered, params, len(ordered))
    update = {
        name: _trimmed_mean([c.update[name] for c in ordered], cut).reshape(like.shape)
        for name, like in params.items()
    }
    return update, _noise(ordered, params, lambda stds: math.sqrt(rank_variance(stds, cut)))


def combine_shares(server: ServerSettings, shares: Sequence[float]) -> list[float]:
    """Return the silos' shares of norms below the clipping norm as one, the same way; each is cut to [0, 1] before.

    A share is noisy and may lie outside by chance; the cut moves its mean inwards by less than its noise there.
    """
    bounded = sorted(map(bounded_share, shares))
    cut = trimmed(server, len(bounded))
    kept = bounded[cut : len(bounded) - cut]
    return [math.fsum(kept) / len(kept)] if kept else []


def trimmed(server: ServerSettings, silos: int) -> int:
    """Return the number of values dropped at each end."""
    most = max(0, (silos - 1) // 2)
    if server.aggregation == "median":
        return most
    if server.aggregation == "trimmed-mean":
        return min(most, math.ceil(server.trim * silos - 1e-9))
    return 0


def rank_variance(stds: Sequence[float], cut: int) -> float:
    """Return the variance of what is left of independent N(0, std^2) after cutting so many at each end; see the
    module.

    Args:
        stds: of the silos, each >= 0.
        cut: below half of them.
    """
    sigma = np.sort(np.asarray(stds, dtype=np.float64))  # so that the order of silos changes no bit
    n = len(sigma)
    if cut == 0:
        return float(np.square(sigma).sum()) / n**2
    if not sigma.any():
        return 0.0
    return _asymptotic(sigma, cut) * equal_variance(n, cut) / _asymptotic(np.ones(n), cut)


@lru_cache(maxsize=4096)
def equal_variance(silos: int, cut: int) -> float:
    """Return the exact variance (by quadrature) if every silo has noise N(0, 1).

    Given the largest value a that is cut below and the smallest b that is cut above, the m = n - 2k kept ones are
    independent normals in (a, b): the variance is E[v(a, b) / m + mu(a, b)^2], mu and v theirs, over the joint density
    of the order statistics a and b (David and Nagaraja 2003, section 2.2).

    Raises:
        ValueError: not 0 <= 2 cut < silos.
    """
    if not 0 <= 2 * cut < silos:
        raise ValueError(f"Expected 0 <= 2 cut < silos, got cut={cut}, silos={silos}")
    if cut == 0:
        return 1 / silos
    kept = silos - 2 * cut
    places, weights = np.polynomial.legendre.leggauss(_NODES)
    centre = float(ndtri(cut / (silos + 1)))
    density = math.exp(-(centre**2) / 2) / math.sqrt(2 * math.pi)
    spread = 9 * math.sqrt(cut / (silos + 1) * (1 - cut / (silos + 1)) / silos) / density
    low, high = max(-12.0, centre - spread), min(12.0, centre + spread)
    a = (low + (high - low) * (places + 1) / 2)[:, None]
    top = max(-low, high) + spread  # b lies as far above as a lies below
    width = (top - a) * (places + 1) / 2
    b = a + width
    log_f = -(a**2 + b**2) / 2 - math.log(2 * math.pi)
    inside = np.maximum(ndtr(b) - ndtr(a), 1e-300)
    log_joint = (
        math.lgamma(silos + 1)
        - 2 * math.lgamma(cut)
        - math.lgamma(kept + 1)
        + (cut - 1) * (log_ndtr(a) + log_ndtr(-b))
        + kept * np.log(inside)
        + log_f
    )
    mass = np.exp(log_joint) * weights[:, None] * weights * (high - low) / 2 * (top - a) / 2
    first, second = (np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) for x in (a, b))
    mean = np.where(width > _NARROW, (first - second) / inside, (a + b) / 2)
    spread_inside = 1 + (a * first - b * second) / inside - mean**2
    variance = np.where(width > _NARROW, spread_inside, width**2 / 12)
    return float((mass * (variance / kept + mean**2)).sum() / mass.sum())


def _asymptotic(sigma: np.ndarray, cut: int) -> float:
    """Return the module's formula for these standard deviations, ascending, not all 0."""
    share = cut / len(sigma)
    positive = sigma[sigma > 0]

    def beyond(c: float) -> float:
        return float(ndtr(-c / positive).sum()) / len(sigma)

    low, high = 0.0, 40.0 * float(sigma[-1])
    if beyond(0.0) <= share:  # so many silos without noise hold the middle still
        return 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if beyond(middle) > share else (low, middle)
    c = (low + high) / 2
    z = c / positive
    inside = 1 - 2 * ndtr(-z)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    squares = positive**2 * (inside - 2 * z * density) + 2 * c**2 * ndtr(-z)
    within = float(inside.sum()) + (len(sigma) - len(positive))
    return float(squares.sum()) / within**2


def _trimmed_mean(values: Sequence[Tensor], cut: int) -> Tensor:
    """Return the mean without the ``cut`` smallest and largest of each coordinate, float32 [d]."""
    flat = [value.reshape(-1) for value in values]
    step = max(1, _CHUNK // len(flat))
    parts = []
    for start in range(0, len(flat[0]), step):
        ranked = torch.stack([value[start : start + step].double() for value in flat]).sort(0)[0]
        parts.append(ranked[cut : len(flat) - cut].mean(0))
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts]).float()


def _norm_clipped(ordered: Sequence[Contribution], params: Mapping[str, Tensor]) -> Combined:
    norms = [
        math.sqrt(sum(float(value.double().square().sum()) for value in c.update.values()))
        for c in ordered
    ]
    limit = statistics.median_low(norms)
    factors = [min(1.0, limit / norm) if norm else 1.0 for norm in norms]
    scaled = [
        Contribution(c.silo, {name: value.double() * f for name, value in c.update.items()}, None)
        for c, f in zip(ordered, factors, strict=True)
    ]
    update, _ = mean_update(scaled, params, len(scaled))

    def deviation(stds: Sequence[float]) -> float:
        return math.hypot(*(f * std for f, std in zip(factors, stds, strict=True))) / len(stds)

    return update, _noise(ordered, params, deviation)


def _noise(
    ordered: Sequence[Contribution],
    params: Mapping[str, Tensor],
    deviation: Callable[[Sequence[float]], float],
) -> dict[str, float] | None:
    """Return ``deviation`` of the silos' noise in each tensor; None if one of them is not known."""
    known = [c.noise_std for c in ordered if c.noise_std is not None]
    if len(known) < len(ordered):
        return None
    return {name: deviation([std[name] for std in known]) for name in params}
