"""Neighbouring relations: what zero-out costs by every accountant, and what the null record is."""

from __future__ import annotations

import math
from collections import Counter

import dp_accounting
import pytest
import torch
from dp_accounting import dp_event as dp
from dp_accounting.pld import PLDAccountant

from privacy.accountants import ACCOUNTANTS, make_accountant
from privacy.events import constructors as ev
from privacy.events.kinds import DiscreteGaussianDpEvent
from privacy.guarantee import Relation, Unit
from privacy.mechanisms.adaptive_clipping import SENSITIVITY, centred_count
from privacy.mechanisms.clipping import clip_and_sum
from privacy.mechanisms.scalar_noise import LaplaceNoise

ZERO, ADD, REPLACE = Relation.ZERO_OUT, Relation.ADD_OR_REMOVE_ONE, Relation.REPLACE_ONE
DELTA = 1e-5
LMO = LaplaceNoise(3.0)
EVENTS = {
    "gaussian": ev.gaussian(2.0),
    "sampled gaussian": ev.dp_sgd(0.05, 1.5, 1),
    "two sums of one sample": ev.poisson_sampled(0.05, [ev.gaussian(2.0), ev.gaussian(3.0)]),
    "discrete gaussian": DiscreteGaussianDpEvent(5.0, 2),
    "pure": ev.pure_dp(0.3),
    "laplace": dp.LaplaceDpEvent(3.0),
    "sampled laplace": dp.PoissonSampledDpEvent(0.1, dp.LaplaceDpEvent(3.0)),
    "discrete laplace": dp.DiscreteLaplaceDpEvent(0.4, 1),
    "scalar noise": ev.scalar_noise(LMO),
    "sampled scalar noise": ev.scalar_noise(LMO, sampling_rate=0.1),
    "vector noise": ev.vector_noise(LMO, 7),
    "mixture": dp.MixtureOfGaussiansDpEvent(1.5, (0.0, 1.0, 2.0), (0.81, 0.18, 0.01)),
    "randomised response": dp.RandomizedResponseDpEvent(0.3, 4),
    "without replacement": dp.SampledWithoutReplacementDpEvent(100, 10, dp.GaussianDpEvent(2.0)),
}


@pytest.mark.parametrize("name", ACCOUNTANTS)
@pytest.mark.parametrize("kind", EVENTS)
def test_zero_out_has_the_pair_of_add_or_remove_one_or_is_refused_as_well(
    name: str, kind: str
) -> None:
    """Truncated samples, in which the null record takes a place, are in test_privacy_truncated."""
    events = Counter({EVENTS[kind]: 3})
    zero, add = make_accountant(name, ZERO), make_accountant(name, ADD)
    assert zero.supports(events) == add.supports(events)
    if not zero.supports(events):
        assert "zero-out" in str(zero.why_unsupported(events))  # which accountant said no
        return
    assert zero.epsilon(events, DELTA) == add.epsilon(events, DELTA)
    assert zero.mu(events) == add.mu(events)


@pytest.mark.parametrize("kind", ["randomised response", "without replacement"])
def test_a_mechanism_without_a_null_record_is_refused_by_name(kind: str) -> None:
    """Randomised response answers for every record; a sample of fixed size goes to others."""
    for name in ACCOUNTANTS:
        reason = make_accountant(name, ZERO).why_unsupported({EVENTS[kind]: 1})
        assert reason is not None
        assert type(EVENTS[kind]).__name__.removesuffix("DpEvent") in reason


@pytest.mark.parametrize("kind", ["gaussian", "sampled gaussian", "discrete laplace"])
def test_zero_out_is_dp_accountings_replace_special(kind: str) -> None:
    reference = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    expected = reference.compose(EVENTS[kind], 3).get_epsilon(DELTA)
    assert make_accountant("pld", ZERO).epsilon({EVENTS[kind]: 3}, DELTA) == pytest.approx(
        expected, rel=2e-3
    )


@pytest.mark.parametrize("kind", ["gaussian", "sampled gaussian", "discrete gaussian", "pure"])
def test_replacing_costs_more_than_zeroing_out(kind: str) -> None:
    zero, replace = make_accountant("pld", ZERO), make_accountant("pld", REPLACE)
    events = {EVENTS[kind]: 3}
    assert replace.epsilon(events, DELTA) > 1.2 * zero.epsilon(events, DELTA)


def test_only_add_or_remove_one_implies_another_relation() -> None:
    implied = {(a, b) for a in Relation for b in Relation if a.implies(b)}
    assert implied == {(r, r) for r in Relation} | {(ADD, ZERO)}
    assert [r for r in Relation if r.doubles] == [REPLACE]


def test_words_say_what_is_public() -> None:
    assert ZERO.describe(Unit.EXAMPLE) == (
        "one training example replaced by an empty one, the number of examples being public"
    )
    assert "secret" in ADD.describe(Unit.EXAMPLE)
    assert ZERO.describe(Unit.CLIENT, "silo").startswith("all data of one silo replaced by no data")
    assert len({r.describe(u) for r in Relation for u in Unit}) == 6


def test_the_null_record_adds_nothing_and_a_record_in_its_place_at_most_its_bound() -> None:
    """The count of adaptive clipping moves by 1/2 exactly, whichever record is replaced by none."""
    rows = torch.tensor([[3.0, 4.0], [0.1, 0.0], [0.0, 0.0], [math.nan, 1.0]])
    whole = clip_and_sum([rows], 1.0)
    for i in range(len(rows)):
        rest = clip_and_sum([torch.cat([rows[:i], rows[i + 1 :]])], 1.0)
        assert float((whole.sums[0] - rest.sums[0]).norm()) <= 1.0
        moved = centred_count(whole.norms, 1.0) - centred_count(rest.norms, 1.0)
        assert abs(moved) == SENSITIVITY
    # A row of zeros in the place of the first one would be another record, which is counted.
    zeroed = clip_and_sum([torch.cat([torch.zeros(1, 2), rows[1:]])], 1.0)
    moved = centred_count(whole.norms, 1.0) - centred_count(zeroed.norms, 1.0)
    assert abs(moved) == 2 * SENSITIVITY
