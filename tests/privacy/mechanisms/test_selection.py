"""Noisy choices: the distribution against brute force, and pure epsilon of exact probabilities."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from privacy.accountants import UnsupportedEvent, make_accountant
from privacy.events import constructors as ev
from privacy.events.multiset import is_private, multiset
from privacy.events.serialization import event_from_json, event_to_json
from privacy.guarantee import Relation
from privacy.mechanisms.permute_and_flip import amplified, noisy_top, permute_and_flip
from privacy.randomness import SecretSource, generator
from tests.support.choices import by_permutations, by_subsets


@pytest.mark.parametrize(
    ("utilities", "sensitivity", "epsilon"),
    [([3, -2, 5, 5], 4, 1.5), ([0, 10], 3, 0.7), ([7, 1, 2, 30, 4], 20, 6.0)],
)
def test_a_choice_has_the_distribution_of_brute_force(utilities, sensitivity, epsilon):
    expected = np.array(by_permutations(utilities, sensitivity, epsilon))
    assert expected.sum() == pytest.approx(1)
    rng, draws = generator(3, "choice"), 6000
    found = Counter(permute_and_flip(utilities, sensitivity, epsilon, rng) for _ in range(draws))
    counts = np.array([found[i] for i in range(len(utilities))])
    assert stats.chisquare(counts, expected * draws).pvalue > 1e-4


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_several_choices_have_the_distribution_of_brute_force(count):
    utilities, sensitivity, epsilon = [5, -3, 9, 0, 2], 6, 3.0
    expected = by_subsets(utilities, count, sensitivity, epsilon)
    rng, draws = generator(4, "top", count), 4000
    found = Counter(
        tuple(noisy_top(utilities, count, sensitivity, epsilon, rng)) for _ in range(draws)
    )
    names = sorted(expected)
    assert set(found) <= set(names)
    p = stats.chisquare([found[n] for n in names], [expected[n] * draws for n in names]).pvalue
    assert p > 1e-4


@pytest.mark.parametrize("count", [None, 1, 2])
def test_no_neighbour_is_beyond_epsilon(count):
    """Exact probabilities of the neighbours on a grid; at the worst of them epsilon is reached."""
    sensitivity, epsilon, rng = 3, 1.2, np.random.default_rng(0)
    worst = 0.0
    for _ in range(60):
        utilities = [int(u) for u in rng.integers(-8, 9, size=4)]
        moves = rng.choice([-3, -1, 0, 2, 3], size=4)
        other = [int(u + m) for u, m in zip(utilities, moves, strict=True)]
        if count is None:
            pair = [by_permutations(u, sensitivity, epsilon) for u in (utilities, other)]
            ratios = [abs(math.log(a / b)) for a, b in zip(*pair, strict=True)]
        else:
            sets = [by_subsets(u, count, sensitivity, epsilon) for u in (utilities, other)]
            ratios = [abs(math.log(sets[0][name] / sets[1][name])) for name in sets[0]]
        worst = max(worst, *ratios)
        assert worst <= epsilon + 1e-9
    assert worst > 0.5 * epsilon
    if count is None:  # the one that the proof names
        tight = [by_permutations(u, sensitivity, epsilon)[0] for u in ([0, 50], [3, 47])]
        assert math.log(tight[1] / tight[0]) == pytest.approx(epsilon, abs=1e-9)


@pytest.mark.parametrize("rate", [1.0, 0.3, 1e-3])
def test_a_sample_amplifies_to_what_was_asked_for(rate):
    epsilon = 0.4
    inner = amplified(epsilon, rate)
    assert inner >= epsilon
    assert math.log(1 + rate * math.expm1(inner)) == pytest.approx(epsilon, rel=1e-9)
    assert math.log1p(rate * math.expm1(inner)) <= epsilon
    # Both directions of exact distributions, without the record and with it in the sample or not.
    without = np.array(by_permutations([4, 0, 1], 2, inner))
    within = np.array(by_permutations([2, 2, 3], 2, inner))
    mixture = (1 - rate) * without + rate * within
    assert float(np.abs(np.log(mixture / without)).max()) <= epsilon + 1e-9


def test_choices_from_the_operating_systems_entropy_differ():
    rng = SecretSource()
    assert {permute_and_flip([0, 0, 0], 1, 1.0, rng) for _ in range(60)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (([], 1, 1.0), "candidate"),
        (([0.5], 1, 1.0), "whole numbers"),
        (([1, 2], 0, 1.0), "sensitivity"),
        (([1, 2], 1, 0.0), "epsilon"),
        (([1, 2], 1, math.inf), "epsilon"),
    ],
)
def test_bad_arguments(arguments, name):
    with pytest.raises(ValueError, match=name):
        permute_and_flip(*arguments, generator(0))
    with pytest.raises(ValueError, match="count"):
        noisy_top([1, 2], 3, 1, 1.0, generator(0))
    with pytest.raises(ValueError, match="rate"):
        amplified(1.0, 0.0)


def test_none_and_all_take_no_choice():
    assert noisy_top([3, 1], 2, 1, 1e-9, generator(0)) == [0, 1]
    assert noisy_top([3, 1], 0, 1, 1e-9, generator(0)) == []
    assert noisy_top([10**9, 1, 10**9], 2, 1, Fraction(1, 2), generator(0)) == [0, 2]


# -- the event -----------------------------------------------------------------------------------


def exact_delta(epsilon, count, at):
    """delta of `count` randomised responses, outcome by outcome."""
    p = 1 / (1 + math.exp(-epsilon))
    total = 0.0
    for ones in range(count + 1):
        loss = epsilon * (2 * ones - count)
        mass = math.comb(count, ones) * p**ones * (1 - p) ** (count - ones)
        total += mass * max(0.0, -math.expm1(at - loss))
    return total


@pytest.mark.parametrize("relation", list(Relation))
@pytest.mark.parametrize(("epsilon", "count"), [(0.5, 1), (0.3, 7), (0.04, 30), (2.0, 3)])
def test_pure_privacy_costs_what_randomised_response_costs(epsilon, count, relation):
    factor = 2 if relation is Relation.REPLACE_ONE else 1
    events = multiset({ev.pure_dp(epsilon): count})
    pld = make_accountant("pld", relation)
    for at in (0.0, 0.5 * epsilon, epsilon, 0.7 * count * epsilon * factor):
        wanted = exact_delta(factor * epsilon, count, at)
        assert wanted <= pld.delta(events, at) <= wanted + 2e-4
    assert pld.epsilon(events, 1e-9) <= count * factor * epsilon * 1.001
    rdp = make_accountant("rdp", relation)
    assert pld.epsilon(events, 1e-6) <= rdp.epsilon(events, 1e-6) + 2e-4


def test_the_renyi_divergence_is_that_of_randomised_response():
    from privacy.accountants.rdp import ORDERS, _single

    epsilon = 0.8
    p = 1 / (1 + math.exp(-epsilon))
    found = dict(zip(ORDERS, _single(ev.pure_dp(epsilon), Relation.ZERO_OUT), strict=True))
    for order in (1.5, 2, 8, 32):
        moment = p**order * (1 - p) ** (1 - order) + (1 - p) ** order * p ** (1 - order)
        assert found[order] == pytest.approx(math.log(moment) / (order - 1), rel=1e-9)
        assert found[order] >= math.log(moment) / (order - 1)
    assert max(found.values()) <= epsilon + 1e-9
    assert np.all(np.isfinite(_single(ev.pure_dp(500.0), Relation.ZERO_OUT)))


def test_the_dominating_mu_of_pure_privacy():
    mu = make_accountant("gdp-dominating").mu(multiset(ev.pure_dp(0.5)))
    assert mu == pytest.approx(-2 * stats.norm.ppf(1 / (1 + math.exp(0.5))), rel=1e-4)
    for name in ("gdp-exact", "gdp-clt"):
        with pytest.raises(UnsupportedEvent, match="PureDp"):
            make_accountant(name).epsilon(multiset(ev.pure_dp(0.5)), 1e-5)


def test_the_event_is_written_and_read():
    event = ev.pure_dp(0.25)
    assert event_to_json(event) == '{"epsilon":0.25,"kind":"PureDp"}'
    assert event_from_json(event_to_json(event)) == event
    assert is_private(event)
    assert make_accountant("pld").epsilon(multiset(ev.pure_dp(1e4)), 1e-3) == math.inf
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="epsilon"):
            ev.pure_dp(bad)
