"""Where an event's divergence is below float64's round-off, RDP must still be a bound."""

from __future__ import annotations

from collections import Counter
from math import expm1

import pytest

from privacy.accountants import make_accountant
from privacy.events.constructors import dp_sgd


@pytest.mark.parametrize("noise", [1.0, 5.0, 30.0])
@pytest.mark.parametrize("mu", [0.5, 1.0])
@pytest.mark.parametrize("rate", [1e-9, 1e-10, 1e-12])
def test_never_below_the_central_limit(rate: float, mu: float, noise: float) -> None:
    # mu = rate * sqrt(steps * (exp(1 / noise^2) - 1)): exact in the limit of many steps.
    steps = round((mu / rate) ** 2 / expm1(noise**-2))
    events = Counter({dp_sgd(rate, noise, 1): steps})
    limit = make_accountant("gdp-clt").epsilon(events, 1e-5)
    assert make_accountant("rdp").epsilon(events, 1e-5) > limit > 0.5


def test_usual_schedules_are_not_touched() -> None:
    events = Counter({dp_sgd(256 / 60000, 0.6953, 1): 1000})
    assert make_accountant("rdp").epsilon(events, 1e-5) == pytest.approx(3.0, rel=5e-3)
