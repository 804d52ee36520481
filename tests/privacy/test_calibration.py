"""Calibration: from the safe side, within the tolerance, and honest about the impossible."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
from dp_accounting import dp_event as dp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privacy import calibration
from privacy.accountants import UnsupportedEvent, make_accountant
from privacy.calibration import (
    calibrate_delta,
    calibrate_noise_multiplier,
    calibrate_sampling_rate,
    calibrate_steps,
)
from privacy.events import constructors as ev
from privacy.events.multiset import multiset
from privacy.guarantee import Relation

DELTA = 1e-5


def recomputed(result, accountant="pld", relation=Relation.ZERO_OUT, others=()):
    step = ev.dp_sgd(result.sampling_rate, result.noise_multiplier, result.steps)
    return make_accountant(accountant, relation).epsilon(multiset([step, *others]), result.delta)


@pytest.mark.parametrize("accountant", ["pld", "rdp", "gdp-clt", "gdp-dominating"])
def test_every_accountant_from_the_safe_side(accountant):
    result = calibrate_noise_multiplier(
        epsilon=2.0, delta=DELTA, sampling_rate=0.02, steps=100, accountant=accountant
    )
    assert 2.0 * (1 - 1e-3) <= result.epsilon <= 2.0
    assert result.epsilon == recomputed(result, accountant)
    assert result.accountant == accountant
    assert result.delta == DELTA


def test_a_sample_rarer_than_delta_needs_no_noise_to_speak_of():
    """Below delta there is nothing to protect: the smallest noise, and an epsilon of zero."""
    result = calibrate_noise_multiplier(epsilon=1, delta=1e-3, sampling_rate=5e-4, steps=1)
    assert result.epsilon == 0.0
    assert result.noise_multiplier <= 0.02


def test_other_events_share_the_budget():
    others = [ev.gaussian(5.0, 2), dp.LaplaceDpEvent(5.0)]
    alone = calibrate_noise_multiplier(epsilon=2, delta=DELTA, sampling_rate=0.05, steps=50)
    shared = calibrate_noise_multiplier(
        epsilon=2,
        delta=DELTA,
        sampling_rate=0.05,
        steps=50,
        other_events=multiset(others),
    )
    assert shared.noise_multiplier > alone.noise_multiplier
    assert 1.998 <= shared.epsilon <= 2
    assert recomputed(shared, others=others) == shared.epsilon


def test_replace_one_needs_more_noise():
    results = {
        relation: calibrate_noise_multiplier(
            epsilon=2, delta=DELTA, sampling_rate=0.05, steps=50, relation=relation
        )
        for relation in Relation
    }
    add, replace = results[Relation.ZERO_OUT], results[Relation.REPLACE_ONE]
    assert 1.998 <= replace.epsilon <= 2
    assert recomputed(replace, relation=Relation.REPLACE_ONE) == replace.epsilon
    assert replace.noise_multiplier > 1.2 * add.noise_multiplier


def test_exact_gaussians():
    result = calibrate_noise_multiplier(
        epsilon=1, delta=DELTA, sampling_rate=1, steps=4, accountant="gdp-exact"
    )
    # For one Gaussian at epsilon 1, delta 1e-5 the noise is 3.7306 (Balle and Wang 2018).
    assert result.noise_multiplier == pytest.approx(2 * 3.7306, rel=1e-3)
    by_pld = calibrate_noise_multiplier(epsilon=1, delta=DELTA, sampling_rate=1, steps=4)
    assert by_pld.noise_multiplier == pytest.approx(result.noise_multiplier, rel=2e-3)


def test_spent_budget_is_impossible_and_says_why():
    with pytest.raises(ValueError, match="other events alone cost"):
        calibrate_noise_multiplier(
            epsilon=1, delta=DELTA, sampling_rate=0.1, steps=5, other_events={ev.gaussian(1.0): 1}
        )
    with pytest.raises(ValueError, match="epsilon=inf"):
        calibrate_noise_multiplier(
            epsilon=1,
            delta=DELTA,
            sampling_rate=0.1,
            steps=5,
            other_events={ev.no_guarantee("counts"): 1},
        )


def test_a_delta_below_what_can_be_computed_is_impossible():
    with pytest.raises(ValueError, match="No noise_multiplier"):
        calibrate_noise_multiplier(epsilon=1, delta=1e-16, sampling_rate=0.1, steps=50)


def test_unsupported_events_are_refused_by_name():
    with pytest.raises(UnsupportedEvent, match="PoissonSampled"):
        calibrate_noise_multiplier(
            epsilon=1, delta=DELTA, sampling_rate=0.1, steps=5, accountant="gdp-exact"
        )


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"sampling_rate": 0.0}, "sampling_rate"),
        ({"sampling_rate": 1.1}, "sampling_rate"),
        ({"steps": 0}, "steps"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"accountant": "moments"}, "moments"),
    ],
)
def test_bad_inputs(changes, name):
    arguments = {"epsilon": 1.0, "delta": DELTA, "sampling_rate": 0.1, "steps": 10}
    with pytest.raises(ValueError, match=name):
        calibrate_noise_multiplier(**(arguments | changes))


ARGUMENTS = {"epsilon": 1.5, "delta": DELTA, "sampling_rate": 0.1, "steps": 20}


def test_cache_saves_the_work_and_is_keyed_by_every_input(tmp_path, monkeypatch):
    first = calibrate_noise_multiplier(**ARGUMENTS, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1

    def fail(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(calibration, "solve_decreasing", fail)
    assert calibrate_noise_multiplier(**ARGUMENTS, cache_dir=tmp_path) == first
    for changes in (
        {"epsilon": 1.6},
        {"delta": 1e-6},
        {"sampling_rate": 0.11},
        {"steps": 21},
        {"relation": Relation.REPLACE_ONE},
        {"accountant": "rdp"},
        {"tolerance": 1e-2},
        {"other_events": {ev.gaussian(20.0): 1}},
    ):
        with pytest.raises(AssertionError, match="computed again"):
            calibrate_noise_multiplier(**(ARGUMENTS | changes), cache_dir=tmp_path)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": {}, "result": {}}', b"\xff\x00"])
def test_a_damaged_cache_is_computed_anew(tmp_path, damage):
    first = calibrate_noise_multiplier(**ARGUMENTS, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    assert calibrate_noise_multiplier(**ARGUMENTS, cache_dir=tmp_path) == first
    assert json.loads(file.read_text())["result"]["epsilon"] == first.epsilon
    assert len(list(tmp_path.iterdir())) == 1


def test_steps_are_the_most_that_fit():
    result = calibrate_steps(epsilon=2, delta=DELTA, sampling_rate=0.02, noise_multiplier=1.0)
    assert result.epsilon <= 2
    assert recomputed(result) == result.epsilon
    one_more = multiset(ev.dp_sgd(0.02, 1.0, result.steps + 1))
    assert make_accountant("pld").epsilon(one_more, DELTA) > 2
    with pytest.raises(ValueError, match="Not even one step"):
        calibrate_steps(epsilon=0.1, delta=DELTA, sampling_rate=0.5, noise_multiplier=0.5)
    few = calibrate_steps(
        epsilon=50, delta=DELTA, sampling_rate=0.01, noise_multiplier=2.0, most=100
    )
    assert few.steps == 100


def test_sampling_rate_is_the_largest_that_fits():
    result = calibrate_sampling_rate(epsilon=2, delta=DELTA, noise_multiplier=1.0, steps=300)
    assert 1.998 <= result.epsilon <= 2
    assert recomputed(result) == result.epsilon
    assert (
        calibrate_sampling_rate(
            epsilon=20, delta=DELTA, noise_multiplier=3.0, steps=3
        ).sampling_rate
        == 1.0
    )
    with pytest.raises(ValueError, match="sampling_rate"):
        calibrate_sampling_rate(
            epsilon=1e-3, delta=1e-9, noise_multiplier=0.02, steps=10, accountant="rdp"
        )


def test_delta_is_what_the_schedule_gives():
    result = calibrate_delta(epsilon=2.0, sampling_rate=0.02, noise_multiplier=1.0, steps=300)
    events = multiset(ev.dp_sgd(0.02, 1.0, 300))
    assert result.delta == make_accountant("pld").delta(events, 2.0)
    assert make_accountant("pld").epsilon(events, result.delta) == pytest.approx(2.0, rel=1e-6)


def test_the_three_solutions_agree():
    noise = calibrate_noise_multiplier(epsilon=3, delta=DELTA, sampling_rate=0.01, steps=500)
    steps = calibrate_steps(
        epsilon=3, delta=DELTA, sampling_rate=0.01, noise_multiplier=noise.noise_multiplier
    )
    assert 500 <= steps.steps <= 503
    rate = calibrate_sampling_rate(
        epsilon=3, delta=DELTA, noise_multiplier=noise.noise_multiplier, steps=500
    )
    assert rate.sampling_rate == pytest.approx(0.01, rel=3e-3)
    delta = calibrate_delta(
        epsilon=3, sampling_rate=0.01, noise_multiplier=noise.noise_multiplier, steps=500
    )
    assert delta.delta <= DELTA
    assert delta.delta == pytest.approx(DELTA, rel=0.02)


# -- any target, and either relation -----------------------------------------------------------

TRIES = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
RELATIONS = st.sampled_from(list(Relation))


def log_floats(low, high):
    return st.floats(math.log10(low), math.log10(high)).map(lambda x: 10**x)


SCHEDULES = {
    "relation": RELATIONS,
    "epsilon": log_floats(0.05, 15),
    "delta": log_floats(1e-11, 1e-2),
    "rate": log_floats(1e-4, 1),
    "noise": log_floats(0.5, 8),
    "steps": st.integers(1, 3000),
}


def only(*names):
    return {name: SCHEDULES[name] for name in names}


@TRIES
@given(**only("relation", "epsilon", "delta", "rate", "steps"))
def test_noise_is_never_above_the_target_and_close_to_it(relation, epsilon, delta, rate, steps):
    result = calibrate_noise_multiplier(
        epsilon=epsilon, delta=delta, sampling_rate=rate, steps=steps, relation=relation
    )
    assert result.epsilon == recomputed(result, relation=relation) <= epsilon
    assert result.epsilon >= epsilon * (1 - 1e-3) or result.noise_multiplier <= 0.0101


@TRIES
@given(**only("relation", "epsilon", "delta", "rate", "noise"))
def test_steps_are_the_most_that_keep_to_any_target(relation, epsilon, delta, rate, noise):
    accountant = make_accountant("pld", relation)

    def cost(steps):
        return accountant.epsilon(multiset(ev.dp_sgd(rate, noise, steps)), delta)

    most = 20_000
    solve = partial(
        calibrate_steps,
        epsilon=epsilon,
        delta=delta,
        sampling_rate=rate,
        noise_multiplier=noise,
        relation=relation,
        most=most,
    )
    if cost(1) > epsilon * (1 - 1e-9):
        with pytest.raises(ValueError, match="Not even one step fits"):
            solve()
        return
    result = solve()
    assert result.epsilon == cost(result.steps) <= epsilon
    assert result.steps == most or cost(result.steps + 1) > epsilon * (1 - 1e-8)


@TRIES
@given(**only("relation", "epsilon", "delta", "noise", "steps"))
def test_sampling_rate_is_never_above_the_target_and_close_to_it(
    relation, epsilon, delta, noise, steps
):
    result = calibrate_sampling_rate(
        epsilon=epsilon, delta=delta, noise_multiplier=noise, steps=steps, relation=relation
    )
    assert result.epsilon == recomputed(result, relation=relation) <= epsilon
    assert result.epsilon >= epsilon * (1 - 1e-3) or result.sampling_rate == 1


@TRIES
@given(**only("relation", "epsilon", "rate", "noise", "steps"))
def test_delta_is_the_smallest_at_any_target(relation, epsilon, rate, noise, steps):
    result = calibrate_delta(
        epsilon=epsilon,
        sampling_rate=rate,
        noise_multiplier=noise,
        steps=steps,
        relation=relation,
    )
    assert 0 <= result.delta <= 1
    assert recomputed(result, relation=relation) <= epsilon * (1 + 1e-9)
    if result.delta > 1e-9:
        less = make_accountant("pld", relation).epsilon(
            multiset(ev.dp_sgd(rate, noise, steps)), result.delta * 0.999
        )
        assert less >= epsilon * (1 - 1e-9)
