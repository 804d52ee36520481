"""Who takes part when: fair, drawn beforehand, from public values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedllm.budget.schedule import (
    evaluation_rounds,
    is_evaluation_round,
    participation,
    planned_rounds,
)

NAMES = [f"silo-{i}" for i in range(7)]


@given(
    n=st.integers(1, 12),
    fraction=st.floats(0.01, 1),
    rounds=st.integers(1, 40),
    seed=st.integers(0, 10**6),
)
@hypothesis_settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_fixed_sampling_is_fair(
    n: int, fraction: float, rounds: int, seed: int, tiny_settings: Callable[..., Any]
) -> None:
    names = [f"s{i}" for i in range(n)]
    changes = {"server.fraction": fraction, "server.rounds": rounds, "seed": seed}
    schedule = participation(tiny_settings(**changes), names)
    size = max(1, round(fraction * n))
    assert len(schedule) == rounds
    for chosen in schedule:
        assert chosen == sorted(set(chosen))
        assert len(chosen) == size
        assert set(chosen) <= set(names)
    counts = [planned_rounds(schedule, name) for name in names]
    assert sum(counts) == rounds * size
    assert max(counts) - min(counts) <= 1


def test_schedule_follows_from_the_seed_and_not_from_the_order_of_names(
    tiny_settings: Callable[..., Any],
) -> None:
    settings = tiny_settings(**{"server.fraction": 0.4, "server.rounds": 9})
    first = participation(settings, NAMES)
    assert participation(settings, list(reversed(NAMES))) == first
    other = tiny_settings(**{"server.fraction": 0.4, "server.rounds": 9, "seed": 8})
    assert participation(other, NAMES) != first


@pytest.mark.parametrize("randomness", ["seeded", "os"])
def test_poisson_sampling_draws_each_silo_by_itself(
    randomness: str, tiny_settings: Callable[..., Any]
) -> None:
    changes = {
        "server.sampling": "poisson",
        "server.fraction": 0.3,
        "server.rounds": 2000,
        "privacy.randomness": randomness,
    }
    settings = tiny_settings(**changes)
    schedule = participation(settings, NAMES)
    counts = Counter(name for chosen in schedule for name in chosen)
    sizes = Counter(map(len, schedule))
    for name in NAMES:  # standard deviation 20
        assert abs(counts[name] - 600) < 110
    expected = 2000 * 0.7**7
    assert abs(sizes[0] - expected) < 6 * expected**0.5, "an empty round must be possible"
    together = sum("silo-0" in c and "silo-1" in c for c in schedule)
    assert abs(together - 180) < 75
    again = participation(settings, NAMES)
    assert (again == schedule) == (randomness == "seeded")


def test_everybody_every_round_where_the_fraction_is_one(
    tiny_settings: Callable[..., Any],
) -> None:
    for sampling in ("fixed", "poisson"):
        settings = tiny_settings(**{"server.sampling": sampling})
        assert participation(settings, NAMES) == [NAMES] * 3


@pytest.mark.parametrize(("every", "rounds"), [(1, 4), (3, 10), (5, 5), (9, 4)])
def test_evaluation_rounds_are_counted_as_they_happen(
    every: int, rounds: int, tiny_settings: Callable[..., Any]
) -> None:
    settings = tiny_settings(**{"evaluation.every": every, "server.rounds": rounds})
    happen = [r for r in range(1, rounds + 1) if is_evaluation_round(settings, r)]
    assert happen[-1] == rounds
    assert evaluation_rounds(settings) == len(happen)
