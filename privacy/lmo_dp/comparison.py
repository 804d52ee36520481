"""Compare LMO-DP's claimed privacy cost with the true cost of its noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy.optimize

from privacy.accountants import make_accountant
from privacy.accountants.gaussian_curve import gaussian_epsilon
from privacy.accountants.vector_bound import gaussian_bound, limit_mu, worst_equal_split
from privacy.events.constructors import dp_sgd, scalar_noise
from privacy.lmo_dp.claim import claimed_epsilon
from privacy.lmo_dp.published import published_epsilon, published_scale
from privacy.mechanisms.scalar_noise.lmo import LmoNoise


@dataclass(frozen=True)
class LmoFigures:
    """Claimed and true figures of one unsampled release: a vector of `dimension` coordinates that changes by L2 norm
    1.

    Attributes:
      dimension, delta: What was asked.
      std, mean_abs: Of the noise on each coordinate.
      claimed_epsilon: The paper's figure, whatever the dimension; no bound of anything.
      claimed_valid: Whether the order it is won at exists, and the vector is one number: else false.
      claimed_order: That order.
      largest_order: The orders below this exist.
      valid_claim: The paper's formula at the best order that exists: a bound for one number only.
      true_epsilon: Of one number, an upper bound, within 0.5 % of the truth. Of a vector, exact for the
        costliest change that is spread equally over coordinates: the truth is at least this.
      true_changed: Over how many coordinates that change is spread.
      limit_epsilon: Its limit as the dimension grows, mu = sqrt(I).
      epsilon_bound: Proven for every change; what the ledger is accounted with.
      gaussian_std: Of the Gaussian noise that costs `true_epsilon`.
    """

    dimension: int
    delta: float
    std: float
    mean_abs: float
    claimed_epsilon: float
    claimed_valid: bool
    claimed_order: int
    largest_order: float
    valid_claim: float
    true_epsilon: float
    true_changed: int
    limit_epsilon: float
    epsilon_bound: float
    gaussian_std: float

    @property
    def factor(self) -> float:
        """Standard deviation over that of the Gaussian noise of equal true epsilon."""
        return self.std / self.gaussian_std


def lmo_figures(noise: LmoNoise, dimension: int, delta: float) -> LmoFigures:
    """Compute the claimed and true figures of one release.

    Args:
      noise: Of each coordinate, in units of the L2 sensitivity.
      dimension: Whole, >= 1.
      delta: 0 < delta < 1.

    Raises:
      ValueError: An argument is out of range.

    Guarantee: `epsilon_bound` is an upper bound for the vector; of one number `true_epsilon` is too.
    """
    if isinstance(dimension, bool) or dimension != int(dimension) or dimension < 1:
        raise ValueError(f"Expected a whole dimension >= 1, got dimension={dimension}")
    claim = claimed_epsilon(noise, delta)
    if dimension == 1:
        true = bound = make_accountant("pld").epsilon({scalar_noise(noise): 1}, delta)
        changed = 1
    else:
        true, changed = worst_equal_split(noise, dimension, delta)
        bound = gaussian_epsilon(gaussian_bound(noise), delta)
    return LmoFigures(
        dimension=dimension,
        delta=delta,
        std=noise.std,
        mean_abs=noise.mean_abs,
        claimed_epsilon=claim.epsilon,
        claimed_valid=claim.valid and dimension == 1,
        claimed_order=claim.order,
        largest_order=claim.largest_order,
        valid_claim=claim.valid_epsilon,
        true_epsilon=true,
        true_changed=changed,
        limit_epsilon=gaussian_epsilon(limit_mu(noise), delta),
        epsilon_bound=bound,
        gaussian_std=_gaussian_std(true, delta),
    )


@dataclass(frozen=True)
class LmoTraining:
    """The noise that the published accounting accepts for a training, and what the training costs with it.

    Attributes:
      scale: Of the noise; ``privacy.noise_scale``.
      claimed_epsilon: What the published code says; no bound of anything.
      spread_epsilon: Of a change that is spread over many coordinates, mu = sqrt(I): the truth is about this or more.
      epsilon_bound: Proven for every change; what the ledger counts.
    """

    scale: float
    claimed_epsilon: float
    spread_epsilon: float
    epsilon_bound: float


def lmo_training(
    noise: LmoNoise, *, epsilon: float, delta: float, rate: float, steps: int
) -> LmoTraining:
    """Compute the noise that the published accounting accepts for a training, and its true cost.

    Args:
      noise, delta, rate, steps: As for `published_epsilon`.
      epsilon: What the published code is to say at most, > 0.

    Raises:
      ValueError: An argument is out of range, or no amount of the noise is claimed to cost so little.

    Guarantee: `epsilon_bound` is an upper bound; the others are none.
    """
    scale = published_scale(noise, epsilon=epsilon, delta=delta, rate=rate, steps=steps)
    scaled, accountant = noise.scaled(scale), make_accountant("pld")

    def training(mu: float) -> float:
        return float(accountant.epsilon({dp_sgd(rate, 1 / mu, steps): 1}, delta))

    return LmoTraining(
        scale=scale,
        claimed_epsilon=published_epsilon(scaled, delta, rate, steps),
        spread_epsilon=training(limit_mu(scaled)),
        epsilon_bound=training(gaussian_bound(scaled)),
    )


def _gaussian_std(epsilon: float, delta: float) -> float:
    """Return the standard deviation of Gaussian noise that costs epsilon at sensitivity 1."""
    if not 0 < epsilon < math.inf:
        return 0.0 if epsilon else math.inf
    low, high = 1e-6, 1.0
    while gaussian_epsilon(1 / high, delta) > epsilon:
        high *= 2
    found = scipy.optimize.brentq(
        lambda std: min(gaussian_epsilon(1 / std, delta), 1e6) - epsilon, low, high, rtol=1e-12
    )
    return float(found)
