"""Why a round of a sum has one local step: two steps under the sum's noise are no composition of two mechanisms.

Between the steps a silo moves by its gradient and its *own* share of the noise. Its second gradient is that of all its examples
at the moved weights, so it can amplify what the first step said of one example, long before the other silos' noise is added.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from fedllm.settings.io import SettingsError
from privacy.randomness import generator
from privacy.secure_sum.shares import draw_share, plan_shares

SILOS, RUNS, EXAMPLES = 64, 4000, 40
NOISE = 4.0  # noise multiplier of each step's sum, as it would be claimed


def sums_of_two_steps(example: int, seed: int) -> np.ndarray:
    """Sums over the silos of both steps' noisy gradients, in units of the clipping norm, [RUNS].

    One number is trained. The silo has one example whose gradient is 1 if it is there (``example``), and others whose gradients at
    the moved weight are 1 or -1 by its sign around 1/2, each within the clipping norm. The other silos' gradients are 0.
    """
    plan = plan_shares(NOISE, 1.0, 1, SILOS)
    step = 2.0**plan.exponent
    own = draw_share(2 * RUNS, plan.sigma, generator(seed, "own")).reshape(2, RUNS) * step
    others = np.zeros(RUNS)
    for silo in range(SILOS - 1):
        share = draw_share(2 * RUNS, plan.sigma, generator(seed, "other", silo))
        others += share.reshape(2, RUNS).sum(0) * step
    first = example + own[0]
    second = EXAMPLES * np.sign(first - 0.5) + own[1]
    return first + second + others


def test_a_test_of_two_steps_has_more_power_than_the_sum_s_noise_would_allow() -> None:
    without, with_it = sums_of_two_steps(0, 1), sums_of_two_steps(1, 2)
    alarms, found = float((without > 0).mean()), float((with_it > 0).mean())
    claimed = np.sqrt(2) / NOISE  # mu of two Gaussian mechanisms, neither sampled
    allowed = norm.cdf(norm.ppf(alarms + 0.03) + claimed)
    assert found > allowed + 0.3
    own = NOISE / np.sqrt(SILOS)  # what protects between the steps is one share
    assert found == pytest.approx(norm.cdf(0.5 / own), abs=0.03)


def test_the_settings_refuse_it(tiny_settings) -> None:
    with pytest.raises(SettingsError, match="between local steps a silo's own share"):
        tiny_settings(**{"privacy.noise_by": "sum", "client.local_steps": 2})
