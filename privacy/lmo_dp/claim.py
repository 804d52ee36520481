"""Published accounting of LMO-DP: its claimed epsilon, and the orders for which it is defined.

The paper's Renyi divergence of one release of one number of sensitivity 1 (arXiv 2405.18776, from M, the
moment generating function of the inverse scale u) is

    RDP(alpha) = ln[(alpha M(alpha - 1) + (alpha - 1) M(-alpha)) / (2 alpha - 1)] / (alpha - 1).

It is exact for releasing the number together with u, and holds for the number alone. It needs M(alpha -
1), which exists for alpha < 1 + min(1 / (a1 theta), rate / a3) only: beyond, the expectation is infinite.
The authors' code evaluates the closed form of M there all the same, where its factors have changed
sign, and takes the best order. That is the figure `claimed` here, and no bound of anything; nor is any
of this a statement on vectors, where it is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.mechanisms.scalar_noise.lmo import LmoNoise

Array = npt.NDArray[np.float64]
LARGEST_ORDER = 128
"""Largest order: integers from 2 to this reproduce the figures of the authors' parameter files."""


@dataclass(frozen=True)
class Claim:
    """The epsilon that the published accounting claims for some releases.

    Attributes:
      epsilon: The smallest over all orders, extrapolated where M does not exist.
      order: The order that gives it.
      valid: Whether M exists there. Then `epsilon` is a bound, for one number.
      valid_epsilon: The smallest over the orders where M exists; infinite if there is none.
      valid_order: The order that gives it.
      largest_order: The orders below this are valid.
    """

    epsilon: float
    order: int
    valid: bool
    valid_epsilon: float
    valid_order: int | None
    largest_order: float


def claimed_epsilon(noise: LmoNoise, delta: float, count: int = 1) -> Claim:
    """Return epsilon by the published accounting, and by the same formula restricted to valid orders.

    Args:
      noise: In units of the sensitivity of a number, or, as the paper uses it, of the norm of a vector.
      delta: 0 < delta < 1.
      count: Number of releases, none of them sampled; whole, >= 1.

    Raises:
      ValueError: An argument is out of range.

    Guarantee: none of `epsilon` unless `valid`; (`valid_epsilon`, delta)-DP for one number.
    """
    if not 0 < delta < 1:
        raise ValueError(f"Expected 0 < delta < 1, got delta={delta}")
    if isinstance(count, bool) or count != int(count) or count < 1:
        raise ValueError(f"Expected a whole count >= 1, got count={count}")
    orders = np.arange(2, LARGEST_ORDER + 1, dtype=np.float64)
    divergence = published_divergence(noise, orders)
    costs = _converted(orders, count * divergence, delta)
    limit = 1 + noise.largest_order
    valid = orders < limit
    best = int(np.nanargmin(costs)) if not np.all(np.isnan(costs)) else None
    inside = np.where(valid, costs, np.nan)
    good = int(np.nanargmin(inside)) if not np.all(np.isnan(inside)) else None
    return Claim(
        epsilon=math.inf if best is None else float(costs[best]),
        order=0 if best is None else int(orders[best]),
        valid=best is not None and bool(valid[best]),
        valid_epsilon=math.inf if good is None else float(costs[good]),
        valid_order=None if good is None else int(orders[good]),
        largest_order=limit,
    )


def published_divergence(noise: LmoNoise, orders: Array) -> Array:
    """Return RDP(alpha) by the paper's formula at each order > 1; NaN where the formula is undefined.

    At orders where M does not exist its closed form is evaluated as the authors do.
    """
    log_upper, sign = _extrapolated(noise, orders - 1)
    log_lower = noise.log_mgf(-orders)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratio = np.exp(log_lower - log_upper)
        inner = (sign * orders + (orders - 1) * ratio) / (2 * orders - 1)
        found = (log_upper + np.log(np.where(inner > 0, inner, np.nan))) / (orders - 1)
    return np.where(found > 0, found, np.nan)


def _extrapolated(noise: LmoNoise, t: Array) -> tuple[Array, Array]:
    """Return (ln |M(t)|, sign) of M's closed form, t > 0; not a number at a pole, or at a root of a negative."""
    gamma = 1 - noise.a1 * noise.gamma_scale * t
    exponential = 1 - noise.a3 / noise.exponential_rate * t
    whole = noise.gamma_shape == round(noise.gamma_shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        sign = np.sign(exponential) * np.where(gamma > 0, 1.0, (-1.0) ** round(noise.gamma_shape))
        if noise.a1 and not whole:
            sign = np.where(gamma > 0, sign, np.nan)
        log_size = -np.log(np.abs(exponential))
        if noise.a1:
            log_size = log_size - noise.gamma_shape * np.log(np.abs(gamma))
    log_size = np.where(np.isfinite(log_size), log_size, np.nan)
    rest = noise.parameters | {"a1": 0.0, "a3": 0.0}
    if noise.a2 or noise.a4:
        log_size = log_size + LmoNoise(**rest).log_mgf(t)
    return log_size, sign


def _converted(orders: Array, divergence: Array, delta: float) -> Array:
    """Return epsilon by the conversion that Opacus uses (Balle et al. 2020, arXiv 1905.09982, theorem 21)."""
    converted = divergence - (math.log(delta) + np.log(orders)) / (orders - 1)
    return np.asarray(np.maximum(converted + np.log1p(-1 / orders), 0.0))
