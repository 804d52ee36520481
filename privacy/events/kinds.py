"""Event types that dp_accounting lacks; `constructors` makes them, `serialization` checks and writes them."""

from __future__ import annotations

from functools import lru_cache

import attr
from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent

from privacy.mechanisms.scalar_noise import ScalarNoise, noise_from_dict
from privacy.secure_sum.bound import check_shares

Parameters = tuple[tuple[str, float], ...]


@attr.s(frozen=True, auto_attribs=True)
class NoGuaranteeDpEvent(dp.NonPrivateDpEvent):  # type: ignore[misc]
    """A release without any privacy, on purpose, with the reason for it.

    Every accountant treats it as a NonPrivateDpEvent: epsilon is infinite.
    """

    reason: str = ""


@attr.s(frozen=True, auto_attribs=True)
class DiscreteGaussianDpEvent(DpEvent):  # type: ignore[misc]
    """One whole number released with discrete Gaussian noise (dp_accounting has no such event).

    Canonne, Kamath and Steinke 2020. A record that may change several numbers spends one event for
    each: the worst case is that it changes all of them.

    Attributes:
      sigma: The parameter of the noise, P[x] proportional to exp(-x^2 / (2 sigma^2)), > 0.
      sensitivity: The most that one record's contribution to the number is in size; whole, >= 1. As
        with the other mechanisms, replace-one doubles it, since a contribution may change its sign.
    """

    sigma: float
    sensitivity: int = 1


@attr.s(frozen=True, auto_attribs=True)
class DiscreteGaussianSumDpEvent(DpEvent):  # type: ignore[misc]
    """A vector of integers with several silos' shares of discrete Gaussian noise, seen as a sum.

    `privacy.secure_sum.bound` has the Gaussian mechanism that dominates it, and the proof.

    Attributes:
      sigma: Parameter of one share, on each entry independently; 4 to 2^40.
      shares: Number of shares that the adversary does not know, 1 to 10^4.
      sensitivity: L2 norm by which one record moves the integers at most, rounding included; 1 to 2^100. Replace-one doubles it.

    Raises:
      ValueError: A parameter is out of range.
    """

    sigma: float
    shares: int
    sensitivity: float

    def __attrs_post_init__(self) -> None:
        """Check the ranges that the bound is proven for."""
        check_shares(self.sigma, self.shares, self.sensitivity)


@attr.s(frozen=True, auto_attribs=True)
class PureDpEvent(DpEvent):  # type: ignore[misc]
    """One use of any mechanism that is (epsilon, 0)-DP under zero-out and add-or-remove-one.

    Its dominating pair is that of randomised response with the losses +epsilon and -epsilon, at the
    probabilities e^eps / (1 + e^eps) and 1 / (1 + e^eps). Proof (Kairouz, Oh and Viswanath 2015, arXiv
    1311.0776): let P and Q be two neighbours' outputs, S an event, a = P(S), b = Q(S) and 1 <= g <= e^eps.
    Of S and of its complement, a <= e^eps b and 1 - b <= e^eps (1 - a). Under these two, a - g b is largest
    where both are equalities, a = e^eps / (1 + e^eps) and b = 1 / (1 + e^eps): the pair's own hockey-stick
    divergence (e^eps - g) / (1 + e^eps). For g > e^eps both are 0, and for g < 1 it is the same with P and
    Q exchanged. A pair that dominates may take the mechanism's place in every (adaptive) composition (Zhu,
    Dong and Wang 2022, theorem 10).

    Replacing a record is removing one and adding another: 2 epsilon.

    Attributes:
      epsilon: >= 0.
    """

    epsilon: float


@attr.s(frozen=True, auto_attribs=True)
class ScalarNoiseDpEvent(DpEvent):  # type: ignore[misc]
    """One real number released with additive noise of a family of `privacy.mechanisms.scalar_noise`.

    Attributes:
      family: The noise's family, such as "laplace" or "lmo".
      parameters: Its parameters as sorted pairs (name, value), in units of the sensitivity: the most
        that one record's contribution to the number is in size. As with the other mechanisms,
        replace-one doubles it.

    Raises:
      ValueError: No such noise; the message names what is wrong.
    """

    family: str
    parameters: Parameters

    def __attrs_post_init__(self) -> None:
        """Check that there is such noise."""
        noise_of(self)


@attr.s(frozen=True, auto_attribs=True)
class VectorNoiseDpEvent(DpEvent):  # type: ignore[misc]
    """A vector released with independent scalar noise on each coordinate.

    Attributes:
      family, parameters: As of `ScalarNoiseDpEvent`, but in units of the L2 norm that one record's
        contribution to the vector has at most (the clipping norm).
      dimension: Number of coordinates, >= 1; 0 where it is not stated, and may be any.

    Raises:
      ValueError: No such noise; the message names what is wrong.
    """

    family: str
    parameters: Parameters
    dimension: int

    def __attrs_post_init__(self) -> None:
        """Check that there is such noise."""
        noise_of(self)


@lru_cache(maxsize=4096)
def _noise(family: str, parameters: Parameters) -> ScalarNoise:
    return noise_from_dict({"family": family, "parameters": dict(parameters)})


def noise_of(event: ScalarNoiseDpEvent | VectorNoiseDpEvent) -> ScalarNoise:
    """Return the noise that an event names, in units of its sensitivity."""
    return _noise(event.family, event.parameters)


def pairs(noise: ScalarNoise) -> Parameters:
    """Return the parameters of noise as an event holds them."""
    return tuple(sorted(noise.parameters.items()))
