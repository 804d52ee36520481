"""Events: exact JSON, flattening, refusals by name."""

from __future__ import annotations

import json
import math
from collections import Counter

import dp_accounting
import numpy as np
import pytest
from dp_accounting import dp_event as dp
from hypothesis import given
from hypothesis import strategies as st

from privacy.events import constructors as ev
from privacy.events.multiset import multiset
from privacy.events.serialization import (
    UnknownEvent,
    canonical,
    event_digest,
    event_from_json,
    event_to_json,
)

noise = st.floats(0.01, 1e6)
rate = st.floats(1e-9, 1.0)
gaussians = noise.map(dp.GaussianDpEvent)
leaves = st.one_of(
    gaussians,
    noise.map(dp.LaplaceDpEvent),
    st.builds(dp.PoissonSampledDpEvent, rate, gaussians),
    st.builds(dp.DiscreteLaplaceDpEvent, noise, st.integers(1, 9)),
    st.builds(dp.RandomizedResponseDpEvent, st.floats(0.01, 1), st.integers(2, 9)),
    st.builds(dp.SampledWithoutReplacementDpEvent, st.just(100), st.integers(1, 100), gaussians),
    st.builds(dp.RepeatAndSelectDpEvent, gaussians, st.floats(1, 9), st.just(math.inf)),
    st.just(dp.NoOpDpEvent()),
    st.text(min_size=1, max_size=9).map(ev.no_guarantee),
    st.builds(dp.ZCDpEvent, noise, noise),
    st.builds(dp.SingleEpochTreeAggregationDpEvent, noise, st.lists(st.integers(1, 9), min_size=1)),
    st.builds(dp.MixtureOfGaussiansDpEvent, noise, st.just([0.0, 1.0]), st.just([0.5, 0.5])),
    st.builds(dp.TruncatedSubsampledGaussianDpEvent, st.just(100), rate, st.just(20), noise),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(dp.SelfComposedDpEvent, inner, st.integers(0, 1000)),
        st.lists(inner, max_size=3).map(dp.ComposedDpEvent),
    ),
    max_leaves=6,
)


@given(trees)
def test_json_round_trip_is_exact(event):
    text = event_to_json(event)
    back = event_from_json(text)
    assert event_to_json(back) == text
    assert back == canonical(event)
    assert event_digest(back) == event_digest(event)
    json.loads(text)  # strict JSON: no NaN, no Infinity
    assert "Infinity" not in text


@given(trees)
def test_multiset_counts_leaves(event):
    def leaves_of(e, times):
        if isinstance(e, dp.SelfComposedDpEvent):
            return leaves_of(e.event, times * e.count)
        if isinstance(e, dp.ComposedDpEvent):
            return sum((leaves_of(x, times) for x in e.events), Counter())
        if isinstance(e, dp.NoOpDpEvent) or times == 0:
            return Counter()
        if isinstance(e, dp.PoissonSampledDpEvent) and e.sampling_probability == 1:
            return Counter({e.event: times})
        return Counter({canonical(e): times})

    assert multiset(event) == leaves_of(event, 1)
    assert multiset({canonical(event): 3}) == multiset([event] * 3)


def test_dp_sgd():
    step = dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(1.1))
    assert ev.dp_sgd(0.01, 1.1, 100) == dp.SelfComposedDpEvent(step, 100)
    assert ev.dp_sgd(0.01, 1.1, 1) == step
    assert ev.dp_sgd(1, 1.1, 1) == dp.GaussianDpEvent(1.1)
    assert multiset(ev.dp_sgd(1.0, 2, 7)) == {dp.GaussianDpEvent(2.0): 7}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0.0, 1.0, 1), "sampling_rate"),
        ((1.1, 1.0, 1), "sampling_rate"),
        ((math.nan, 1.0, 1), "sampling_rate"),
        ((0.1, 0.0, 1), "noise_multiplier"),
        ((0.1, -1.0, 1), "noise_multiplier"),
        ((0.1, math.inf, 1), "noise_multiplier"),
        ((0.1, 1.0, -1), "steps"),
        ((0.1, 1.0, 1.5), "steps"),
    ],
)
def test_dp_sgd_refuses(arguments, name):
    with pytest.raises(ValueError, match=name):
        ev.dp_sgd(*arguments)


def test_sampling_of_a_composition_is_kept():
    inner = dp.ComposedDpEvent([dp.GaussianDpEvent(1.0), dp.GaussianDpEvent(2)])
    event = dp.PoissonSampledDpEvent(0.1, inner)
    assert event_from_json(event_to_json(event)) == canonical(event)
    assert sum(multiset(event).values()) == 1


def test_no_guarantee_keeps_its_reason_and_is_non_private_for_dp_accounting():
    event = event_from_json(event_to_json(ev.no_guarantee("loss released in the clear")))
    assert isinstance(event, dp.NonPrivateDpEvent)
    assert event.reason == "loss released in the clear"
    accountant = dp_accounting.pld.PLDAccountant().compose(event)
    assert accountant.get_epsilon(1e-5) == math.inf
    with pytest.raises(ValueError, match="reason"):
        ev.no_guarantee("")


def test_equal_events_have_equal_digests_whatever_the_number_type():
    assert event_digest(dp.GaussianDpEvent(1)) == event_digest(dp.GaussianDpEvent(1.0))
    assert event_digest(dp.GaussianDpEvent(np.float64(0.1))) == event_digest(
        dp.GaussianDpEvent(0.1)
    )
    third = event_from_json(event_to_json(dp.GaussianDpEvent(1 / 3)))
    assert third.noise_multiplier == 1 / 3


class HomemadeDpEvent(dp.DpEvent):
    """A kind that nobody knows."""


@pytest.mark.parametrize(
    "event",
    [
        dp.UnsupportedDpEvent(),
        HomemadeDpEvent(),
        dp.SelfComposedDpEvent(dp.UnsupportedDpEvent(), 2),
        dp.ComposedDpEvent([dp.GaussianDpEvent(1.0), HomemadeDpEvent()]),
    ],
)
def test_unknown_kinds_are_refused_by_name(event):
    for use in (event_to_json, multiset, event_digest):
        with pytest.raises(UnknownEvent, match=r"UnsupportedDpEvent|HomemadeDpEvent"):
            use(event)


@pytest.mark.parametrize(
    "event",
    [
        dp.GaussianDpEvent(-1.0),
        dp.GaussianDpEvent(math.nan),
        dp.GaussianDpEvent(math.inf),
        dp.GaussianDpEvent([1.0]),
        dp.PoissonSampledDpEvent(1.5, dp.GaussianDpEvent(1.0)),
        dp.SelfComposedDpEvent(dp.GaussianDpEvent(1.0), -1),
        dp.SelfComposedDpEvent(dp.GaussianDpEvent(1.0), 1.5),
        dp.SelfComposedDpEvent(dp.GaussianDpEvent(1.0), True),
    ],
)
def test_values_out_of_range_are_refused(event):
    with pytest.raises(UnknownEvent, match=r"noise_multiplier|sampling_probability|count"):
        event_to_json(event)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "1",
        '{"kind":"Gaussian"}',
        '{"kind":"Exotic"}',
        '{"kind":"Gaussian","noise_multiplier":"1"}',
        '{"kind":"Gaussian","noise_multiplier":NaN}',
        '{"kind":"Gaussian","noise_multiplier":1,"extra":1}',
    ],
)
def test_bad_json_is_refused(text):
    with pytest.raises(UnknownEvent):
        event_from_json(text)


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="count"):
        multiset({dp.GaussianDpEvent(1.0): -1})
