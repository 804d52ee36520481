"""Cost of a whole training, and the noise for it, as LMO-DP's published code computes them.

The authors' code has no accountant for the composition of LMO noise with sampling. It takes the claimed
epsilon of one release (:mod:`privacy.lmo_dp.claim`), asks which Gaussian noise the classical
formula gives for it,

    sigma = sqrt(2 ln(1.25 / delta)) / epsilon_1,

and states what DP-SGD with *that* noise costs, by RDP. Neither step is a bound of anything: the
claim holds for one number at most, and the formula says which Gaussian is enough for epsilon_1 <= 1, not which
Gaussian costs as much. It is here so that runs can be made with the noise that the claim leads to
(``privacy.noise_scale``), whose ledger counts what is proven.
"""

from __future__ import annotations

import math

from privacy.accountants import make_accountant
from privacy.calibration import calibrate_noise_multiplier
from privacy.events.constructors import dp_sgd
from privacy.lmo_dp.claim import claimed_epsilon
from privacy.mechanisms.scalar_noise.lmo import LmoNoise

_STEP = 2 ** (1 / 16)
_LEAST, _MOST = 1 / 50, 1e4  # E|x| in units of the sensitivity, between which scales are tried
_BISECTIONS = 40


def published_epsilon(noise: LmoNoise, delta: float, rate: float, steps: int) -> float:
    """Return the epsilon that the published code states for `steps` sampled releases; not a bound.

    Args:
      noise: In units of the clipping norm.
      delta: 0 < delta < 1.
      rate: Probability of each record to be in a step, 0 < rate <= 1.
      steps: Whole, >= 1.

    Raises:
      ValueError: An argument is out of range.
    """
    one = claimed_epsilon(noise, delta).epsilon
    if math.isinf(one):
        return math.inf
    if one == 0:
        return 0.0
    event = dp_sgd(rate, _classical(delta) / one, steps)
    return float(make_accountant("rdp").epsilon({event: 1}, delta))


def published_scale(
    noise: LmoNoise,
    *,
    epsilon: float,
    delta: float,
    rate: float,
    steps: int,
) -> float:
    """Return the factor of the least noise that the published code accepts for a training.

    Of all scales at which `published_epsilon` is at most epsilon, the smallest: the claim is no monotone
    function of the scale, since it uses orders where its formula has none.

    Args:
      noise, delta, rate, steps: As for `published_epsilon`.
      epsilon: The target, > 0.

    Raises:
      ValueError: An argument is out of range, or the claim is above the target at every scale (its orders
        end at 128, so that a release is never claimed to cost less than about ln(1 / delta) / 127).
    """
    found = calibrate_noise_multiplier(
        epsilon=epsilon,
        delta=delta,
        sampling_rate=rate,
        steps=steps,
        accountant="rdp",
    )
    goal = _classical(delta) / found.noise_multiplier

    def claims(scale: float) -> float:
        return claimed_epsilon(noise.scaled(scale), delta).epsilon

    unit = noise.mean_abs
    scale = _LEAST / unit
    while (claim := claims(scale)) > goal:
        scale *= _STEP
        if scale * unit > _MOST:
            raise ValueError(
                f"No amount of this noise is claimed to cost epsilon={epsilon:g} at delta={delta:g} in "
                f"{steps} steps: one release would have to cost {goal:.4g}, the published formula says "
                f"{claim:.4g} or more"
            )
    low, high = scale / _STEP, scale
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if claims(middle) <= goal else (middle, high)
    return high


def _classical(delta: float) -> float:
    return math.sqrt(2 * math.log(1.25 / delta))
