"""Adversaries that choose what is run next after what they saw: the budget's delta is never exceeded."""

from __future__ import annotations

import pytest

from simulations.attacks.privacy_filter import ADVERSARIES, DELTA, RULES, estimate

FILTERS = [rule for rule in RULES if rule != "joint"]


def test_the_rule_of_before_is_exceeded_and_the_filter_is_not() -> None:
    """Tight composition over everything so far, asked before each choice: more than five standard errors."""
    joint = estimate("second-run", "joint", 60_000)
    assert joint.delta > DELTA + 5 * joint.error
    assert joint.delta == pytest.approx(0.0150, abs=0.0015)
    held = estimate("second-run", "chosen", 60_000)
    assert held.holds
    assert held.delta > 0.7 * DELTA, "the adversary does not try"


@pytest.mark.slow
@pytest.mark.parametrize("rule", FILTERS)
@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_no_adversary_exceeds_a_filter(adversary: str, rule: str) -> None:
    assert estimate(adversary, rule, 300_000, seed=1).holds
